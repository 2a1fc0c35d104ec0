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
    sync::{
        GlobalLock,
        GlobalLockBackend, //
    },
};

/// A driver with a folder: each that `module_xenbus_driver!` declares.
pub(crate) trait HasFolder {
    /// The folder, for as long as the driver is registered.
    fn dir() -> Option<Dir>;
}

/// A driver's folder, until it is dropped.
pub(crate) struct Root<B: GlobalLockBackend<Item = Option<Dir>> + 'static>(&'static GlobalLock<B>);

impl<B: GlobalLockBackend<Item = Option<Dir>>> Root<B> {
    /// Makes the folder, and keeps it in `place`.
    ///
    /// # Safety
    ///
    /// To be called once for a `place`, before anything else is done with it.
    pub(crate) unsafe fn new(place: &'static GlobalLock<B>, name: &CStr) -> Self {
        // SAFETY: By this function's requirements.
        unsafe { place.init() };
        *place.lock() = Some(Dir::new(name));
        Self(place)
    }
}

impl<B: GlobalLockBackend<Item = Option<Dir>>> Drop for Root<B> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// A device's folder and what its files show; it goes when this is dropped.
pub(crate) type Folder<T> = Pin<KBox<Scope<T>>>;

/// Makes a device's folder in its driver's, `D`'s, with the files that `fill` puts there.
pub(crate) fn folder<D: HasFolder, Ctx: DeviceContext, T: 'static>(
    dev: &Device<Ctx>,
    data: T,
    fill: impl for<'data, 'dir> FnOnce(&'data T, &'dir ScopedDir<'data, 'dir>),
) -> Result<Folder<T>> {
    let root = D::dir().ok_or(ENOENT)?;
    let name = dev.as_ref().name();

    KBox::pin_init(root.scope(Ok::<T, Error>(data), name, fill), GFP_KERNEL)
}
