# SPDX-License-Identifier: GPL-2.0
# For people: 'make help' says what there is. The kernel's own build reads Kbuild instead.

KDIR ?= /lib/modules/$(shell uname -r)/build
# With make everything ends that it has started, however make ends.
enter := setpriv --pdeathsig KILL tools/env/run

# Where Kbuild puts what it makes, apart from the sources.
out = build/module/$(shell cat $(KDIR)/include/config/kernel.release 2>/dev/null)
kbuild = $(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(CURDIR)/$(out)

build deb kdir shell:
	@$(enter) python3 tools/run.py $@

# Of arm64 there is a short part.
test: export CROSS = $(if $(SCENARIOS),,arm64)

demo test test-deep compare bench intree series:
	@$(enter) python3 tests/run.py $@

results:
	@$(enter) python3 tests/results.py

modules:
	@tools/env/check-kdir $(KDIR)
	@mkdir -p $(out)
	$(kbuild) modules

modules_install: modules
	$(kbuild) modules_install

clean:
	rm -rf build

distclean: clean
	tools/env/forget

help:
	@echo 'make               build the module for every kernel, and the backend, into build/'
	@echo 'make deb           the Debian packages of the backend and of the driver, into build/deb/'
	@echo 'make demo          boot Xen with two guests and see a vTPM at work;'
	@echo '                   SHELL_IN=domu or SHELL_IN=dom0 ends in a shell there'
	@echo 'make test          all checks that take minutes; report in build/report/tests.md'
	@echo 'make test-deep     the long ones; report in build/report/deep.md'
	@echo 'make intree        the driver in a kernel tree: builds that, and runs it in guests with IMA;'
	@echo '                   report in build/report/intree.md'
	@echo 'make series        the driver as patches to a kernel tree in its own style, in build/series/;'
	@echo '                   KERNEL=TREE names one, else it is the newest stock kernel;'
	@echo '                   SENDER="Name <address>" is its author and maintainer'
	@echo 'make compare       the same guest checks on the C driver; report in build/report/compare.md'
	@echo 'make bench         what commands cost, beside the C driver; results in build/bench/;'
	@echo '                   QUICK=1 takes fewer samples'
	@echo 'make results       what the last whole runs said, with commit and host, into Documentation/results/DATE/'
	@echo 'make shell         a shell in the Debian root that all of this runs in'
	@echo 'make kdir          print the prepared kernel trees, for KDIR='
	@echo 'make modules KDIR=TREE            build the module on a kernel tree'
	@echo 'make modules_install KDIR=TREE    install it (INSTALL_MOD_PATH= is honoured)'
	@echo 'make clean         remove build/'
	@echo 'make distclean     remove build/ and the cache'
	@echo 'ARCH=arm64 is for that architecture, cross-built and emulated: build, demo, test, test-deep, kdir, deb, series.'
	@echo 'SCENARIOS=NAME,... runs these alone, KERNEL=7.2 that kernel, PART=2/6 the second of six parts of'
	@echo 'test-deep; SLOWNESS=2 doubles every timeout, JOBS=4 is how much is done at a time.'
	@echo 'VERSIONS=FILE repeats what a versions.lock of build/report/ says; DEBIAN_MIRROR= may be a snapshot.'
	@echo 'COLD=1 makes the root and the kernel trees anew; XDG_CACHE_HOME= is honoured.'

.PHONY: build demo test test-deep compare bench intree series results deb kdir shell modules modules_install clean distclean help
