// SPDX-License-Identifier: GPL-2.0

//! The driver's folder in debugfs, in which each of its devices has one. Without CONFIG_DEBUG_FS
//! there are none, and nothing of this costs anything.

use super::bus::Device;
use kernel::{
    debugfs::{
        Dir,
        Scope,
        ScopedDir, //
    },
    device::DeviceContext,
    prelude::*,
    sync::global_lock, //
};

global_lock! {
    // SAFETY: `Root::new()` initialises it, before there is a device.
    unsafe(uninit) static ROOT: Mutex<Option<Dir>> = None;
}

/// The driver's folder, until it is dropped.
pub(crate) struct Root(());

impl Root {
    /// Makes the folder.
    ///
    /// # Safety
    ///
    /// To be called once, before the driver is registered.
    pub(crate) unsafe fn new(name: &CStr) -> Self {
        // SAFETY: By this function's requirements.
        unsafe { ROOT.init() };
        *ROOT.lock() = Some(Dir::new(name));
        Self(())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        *ROOT.lock() = None;
    }
}

/// A device's folder and what its files show; it goes when this is dropped.
pub(crate) type Folder<T> = Pin<KBox<Scope<T>>>;

/// Makes a device's folder, with the files that `fill` puts there.
pub(crate) fn folder<Ctx: DeviceContext, T: 'static>(
    dev: &Device<Ctx>,
    data: T,
    fill: impl for<'data, 'dir> FnOnce(&'data T, &'dir ScopedDir<'data, 'dir>),
) -> Result<Folder<T>> {
    let root = ROOT.lock().clone().ok_or(ENOENT)?;
    let name = dev.as_ref().name();

    KBox::pin_init(root.scope(Ok::<T, Error>(data), name, fill), GFP_KERNEL)
}
