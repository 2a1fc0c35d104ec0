// SPDX-License-Identifier: GPL-2.0

//! A vTPM from its creation to its end, in the orders that xl has.

use crate::host::Host;
use crate::hypervisor::Reason;
use crate::toolstack::uuid;
use crate::tpm::{code, extend, GET_RANDOM};

#[test]
fn a_guest_has_a_tpm_and_gives_it_up() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));

    assert_eq!(code(&guest.run(&GET_RANDOM)), 0);
    guest.reconnect();
    assert_eq!(code(&guest.run(&GET_RANDOM)), 0);
    host.detach(7);
    host.attach(7, &uuid(7));
    guest.connect();
    guest.done(&GET_RANDOM);
    host.shut_down(guest, Reason::Poweroff);
}

#[test]
#[ignore = "new daemon"]
fn a_reboot_resets_the_pcrs_and_a_save_keeps_them() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    let reset = guest.pcr(16);
    guest.done(&extend(16));
    let extended = guest.pcr(16);
    assert_ne!(reset, extended);

    assert!(host.save(guest));
    let mut guest = host.boot(8, &uuid(7));
    assert_eq!(guest.pcr(16), extended, "after the restore");
    host.shut_down(guest, Reason::Reboot);
    let mut guest = host.boot(9, &uuid(7));
    assert_eq!(guest.pcr(16), reset, "after the reboot");
}
