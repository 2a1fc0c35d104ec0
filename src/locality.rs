// SPDX-License-Identifier: GPL-2.0

//! The `locality` attribute: the locality of the guest's next requests.
//! `Documentation/ABI/testing/sysfs-driver-xen-tpmfront` describes it.

use crate::{
    tpm::attribute::{
        parse_u8,
        Attribute, //
    },
    vtpm::Vtpm,
};
use kernel::prelude::*;

/// The attribute. The value is kept by the driver: it is never read from the shared page.
pub(crate) struct Locality;

impl Attribute for Locality {
    type Ops = Vtpm;

    const NAME: &'static CStr = c"locality";
    const MODE: u16 = 0o644;

    #[inline]
    fn show(vtpm: &Vtpm) -> Result<u32> {
        Ok(vtpm.locality().into())
    }

    #[inline]
    fn store(vtpm: &Vtpm, text: &CStr) -> Result {
        vtpm.set_locality(parse_u8(text)?);
        Ok(())
    }
}
