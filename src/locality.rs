// SPDX-License-Identifier: GPL-2.0

//! The `locality` attribute: from which locality the guest's next requests are sent.
//! `Documentation/ABI/testing/sysfs-driver-xen-tpmfront` tells what it means.

use crate::{
    tpm::attribute::{
        parse_u8,
        Attribute, //
    },
    vtpm::Vtpm,
};
use kernel::prelude::*;

/// The attribute. The value is the driver's own: the shared page is not asked for it.
pub(crate) struct Locality;

impl Attribute for Locality {
    type Operations = Vtpm;

    const NAME: &'static CStr = c"locality";
    const MODE: u16 = 0o644;

    fn show(vtpm: &Vtpm) -> Result<u32> {
        Ok(vtpm.locality().into())
    }

    fn store(vtpm: &Vtpm, text: &CStr) -> Result {
        vtpm.set_locality(parse_u8(text)?);
        Ok(())
    }
}
