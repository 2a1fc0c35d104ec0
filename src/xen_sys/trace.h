/* SPDX-License-Identifier: GPL-2.0 */
/* Tracepoints: commands, and the state of the connection. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM xen_tpmfront

#if !defined(XEN_TPMFRONT_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define XEN_TPMFRONT_TRACE_H

#include <linux/device.h>
#include <linux/tracepoint.h>

/* Keep in step with enum ConnState in src/protocol/state.rs. */
#define show_connection(state)				\
	__print_symbolic(state,				\
			 { 0, "Disconnected" },		\
			 { 1, "Initialised" },		\
			 { 2, "Verifying" },		\
			 { 3, "Connected" },		\
			 { 4, "Wedged" },		\
			 { 5, "TpmMismatch" },		\
			 { 6, "Unsupported" })

TRACE_EVENT(xen_tpmfront_command,
	    TP_PROTO(struct device *dev, u32 ordinal, u8 locality, u32 request,
		     s32 response, u64 us),
	    TP_ARGS(dev, ordinal, locality, request, response, us),
	    TP_STRUCT__entry(__string(name, dev_name(dev))
			     __field(u32, ordinal)
			     __field(u32, request)
			     __field(s32, response)
			     __field(u64, us)
			     __field(u8, locality)),
	    TP_fast_assign(__assign_str(name);
			   __entry->ordinal = ordinal;
			   __entry->request = request;
			   __entry->response = response;
			   __entry->us = us;
			   __entry->locality = locality;),
	    /* The response's length, or the negative errno. */
	    TP_printk("%s ordinal=0x%x locality=%u request=%u response=%d us=%llu",
		      __get_str(name), __entry->ordinal, __entry->locality,
		      __entry->request, __entry->response, __entry->us)
);

TRACE_EVENT(xen_tpmfront_connection,
	    TP_PROTO(struct device *dev, u32 state),
	    TP_ARGS(dev, state),
	    TP_STRUCT__entry(__string(name, dev_name(dev))
			     __field(u32, state)),
	    TP_fast_assign(__assign_str(name);
			   __entry->state = state;),
	    TP_printk("%s %s", __get_str(name), show_connection(__entry->state))
);

#endif

#undef TRACE_INCLUDE_PATH
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_PATH .
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
