// SPDX-License-Identifier: GPL-2.0
/*
 * libxenevtchn.so.1 without Xen: the test plays the hypervisor (hypervisor.rs). A handle is a
 * connection to its socket; an event is one message of four bytes, the port, as a read of
 * /dev/xen/evtchn gives it, and unmasking is a write of the same four bytes.
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <xenevtchn.h>

/* What hypervisor.rs takes. It replies to BIND, VIRQ and RESTRICT. */
enum { BIND, UNBIND, NOTIFY, VIRQ, RESTRICT, REQUEUE };

struct request {
	uint32_t what, domid, port;
};

struct reply {
	int64_t value;
};

struct xenevtchn_handle {
	int fd;
};

static int tell(xenevtchn_handle *xce, uint32_t what, uint32_t domid, uint32_t port)
{
	struct request request = { what, domid, port };

	return write(xce->fd, &request, sizeof(request)) == sizeof(request) ? 0 : -1;
}

/* An event that comes before the reply goes back, to be delivered again. */
static int ask(xenevtchn_handle *xce, uint32_t what, uint32_t domid, uint32_t port)
{
	union { struct reply reply; uint32_t port; } in;
	uint32_t early[16];
	int n_early = 0;
	ssize_t n = 0;

	if (tell(xce, what, domid, port))
		return -1;
	/* The handle may be a non-blocking one. */
	while (poll(&(struct pollfd){ .fd = xce->fd, .events = POLLIN }, 1, 10000) == 1 &&
	       (n = recv(xce->fd, &in, sizeof(in), 0)) == sizeof(in.port) && n_early < 16)
		early[n_early++] = in.port;
	while (n_early)
		tell(xce, REQUEUE, 0, early[--n_early]);
	if (n != sizeof(in.reply)) {
		errno = n < 0 ? errno : EIO;
		return -1;
	}
	if (in.reply.value < 0) {
		errno = -in.reply.value;
		return -1;
	}
	return in.reply.value;
}

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	xenevtchn_handle *xce = malloc(sizeof(*xce));

	snprintf(address.sun_path, sizeof(address.sun_path), "%s/evtchn",
		 getenv("XEN_STANDIN_DIR"));
	xce->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (xce->fd >= 0 && !connect(xce->fd, (void *)&address, sizeof(address)))
		return xce;
	close(xce->fd);
	free(xce);
	return NULL;
}

xenevtchn_handle *xenevtchn_fdopen(struct xentoollog_logger *logger, int fd, unsigned int flags)
{
	xenevtchn_handle *xce = malloc(sizeof(*xce));

	xce->fd = fd;
	return xce;
}

int xenevtchn_close(xenevtchn_handle *xce)
{
	int r = close(xce->fd);

	free(xce);
	return r;
}

int xenevtchn_fd(xenevtchn_handle *xce)
{
	return xce->fd;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid,
						     evtchn_port_t remote_port)
{
	return ask(xce, BIND, domid, remote_port);
}

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq)
{
	return ask(xce, VIRQ, 0, virq);
}

int xenevtchn_restrict(xenevtchn_handle *xce, domid_t domid)
{
	return ask(xce, RESTRICT, domid, 0);
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
	return tell(xce, UNBIND, 0, port);
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
	return tell(xce, NOTIFY, 0, port);
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
	evtchn_port_t port;
	ssize_t n = read(xce->fd, &port, sizeof(port));

	if (n == sizeof(port))
		return port;
	errno = n < 0 ? errno : EIO;
	return -1;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
	return write(xce->fd, &port, sizeof(port)) == sizeof(port) ? 0 : -1;
}
