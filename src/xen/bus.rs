// SPDX-License-Identifier: GPL-2.0

//! The xenbus bus, from a frontend driver's side.
//!
//! C header: [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)

use super::store::Value;
use crate::xen_sys;
use core::{
    marker::PhantomData,
    mem::offset_of,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    device,
    driver,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::aref::AlwaysRefCounted,
    types::Opaque,
    ThisModule, //
};

/// The states by which the two ends of a device come together and part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There is no state, or one that has no meaning.
    Unknown,
    /// The device is being set up.
    Initialising,
    /// The backend waits for the frontend's details.
    InitWait,
    /// The details are there.
    Initialised,
    /// In use.
    Connected,
    /// Being taken down.
    Closing,
    /// Down.
    Closed,
}

impl State {
    fn from_raw(raw: xen_sys::xenbus_state) -> Self {
        match raw {
            xen_sys::xenbus_state_XenbusStateInitialising => Self::Initialising,
            xen_sys::xenbus_state_XenbusStateInitWait => Self::InitWait,
            xen_sys::xenbus_state_XenbusStateInitialised => Self::Initialised,
            xen_sys::xenbus_state_XenbusStateConnected => Self::Connected,
            xen_sys::xenbus_state_XenbusStateClosing => Self::Closing,
            xen_sys::xenbus_state_XenbusStateClosed => Self::Closed,
            _ => Self::Unknown,
        }
    }

    /// The number that xenstore has for the state.
    pub(crate) fn as_raw(self) -> u32 {
        match self {
            Self::Unknown => xen_sys::xenbus_state_XenbusStateUnknown,
            Self::Initialising => xen_sys::xenbus_state_XenbusStateInitialising,
            Self::InitWait => xen_sys::xenbus_state_XenbusStateInitWait,
            Self::Initialised => xen_sys::xenbus_state_XenbusStateInitialised,
            Self::Connected => xen_sys::xenbus_state_XenbusStateConnected,
            Self::Closing => xen_sys::xenbus_state_XenbusStateClosing,
            Self::Closed => xen_sys::xenbus_state_XenbusStateClosed,
        }
    }
}

/// A driver of frontend devices.
pub(crate) trait Driver: 'static {
    /// What belongs to one bound device.
    type Data: Send + Sync + 'static;

    /// The device type in xenstore, at most 31 bytes: `device/TYPE/N`.
    const DEVICE_TYPE: &'static CStr;

    /// The name of the driver's folder in debugfs.
    const FOLDER: &'static CStr;

    /// Whether a guest is of no use without the device. While a device that has a driver is not
    /// connected, xenbus keeps the boot and `modprobe` waiting for up to 30 s, and for an essential
    /// one 270 s more.
    const ESSENTIAL: bool;

    /// Takes charge of a device. The backend's state is not watched before this returns.
    fn probe(dev: &Device<device::Core<'_>>) -> impl PinInit<Self::Data, Error>;

    /// The backend's state was written, or may have been. Runs in the one thread that takes all
    /// of xenstore's watches, never at the same time for one device.
    fn backend_changed(dev: &Device<device::Core<'_>>, data: Pin<&Self::Data>, state: State);

    /// The domain runs again, after a save or a migration: page, grant and event channel are no
    /// longer connected to anything, and the backend may be another one.
    fn resume(dev: &Device<device::Core<'_>>, data: Pin<&Self::Data>) -> Result;

    /// The device is about to be unbound. `data` is dropped afterwards.
    fn unbind(dev: &Device<device::Core<'_>>, data: Pin<&Self::Data>);
}

/// Connects a [`Driver`] to xenbus.
pub(crate) struct Adapter<T: Driver>(PhantomData<T>);

impl<T: Driver> Adapter<T> {
    /// The one device type, and the end of the table.
    const IDS: [xen_sys::xenbus_device_id; 2] = {
        let name = T::DEVICE_TYPE.to_bytes();
        let mut ids = [xen_sys::xenbus_device_id {
            devicetype: [0; 32],
        }; 2];
        let mut i = 0;

        // The last byte ends it.
        assert!(name.len() < ids[0].devicetype.len());
        while i < name.len() {
            ids[0].devicetype[i] = name[i];
            i += 1;
        }
        ids
    };
}

// SAFETY: `xenbus_driver` is a C struct that embeds a `struct device_driver` at that offset, and
// `T::Data` is what `probe_callback()` stores.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = xen_sys::xenbus_driver;
    type DriverData<'bound> = T::Data;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, driver);
}

// SAFETY: A driver that was registered may be unregistered.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        drv: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // Elsewhere xenbus would accept the driver and never find it a device.
        // SAFETY: There are no requirements.
        if !unsafe { xen_sys::rust_helper_xen_has_pv_devices() } {
            return Err(ENODEV);
        }

        let raw = drv.get();
        // SAFETY: Nobody else knows the driver before it is registered.
        unsafe {
            (*raw).ids = Self::IDS_REF.as_ptr();
            (*raw).not_essential = !T::ESSENTIAL;
            // What comes later in the boot finds the device probed, whatever the command line says.
            (*raw).driver.probe_type = bindings::probe_type_PROBE_FORCE_SYNCHRONOUS;
            (*raw).probe = Some(Self::probe_callback);
            (*raw).otherend_changed = Some(Self::otherend_changed_callback);
            (*raw).resume = Some(Self::resume_callback);
            (*raw).remove = Some(Self::remove_callback);
        }

        // SAFETY: The driver is valid and stays so until it is unregistered.
        to_result(unsafe {
            xen_sys::__xenbus_register_frontend(raw, module.as_ptr(), name.as_char_ptr())
        })
    }

    unsafe fn unregister(drv: &Opaque<Self::DriverType>) {
        // SAFETY: The driver is registered, by this function's requirements.
        unsafe { xen_sys::xenbus_unregister_driver(drv.get()) }
    }
}

impl<T: Driver> Adapter<T> {
    const IDS_REF: &'static [xen_sys::xenbus_device_id; 2] = &Self::IDS;

    /// The device of a callback.
    ///
    /// # Safety
    ///
    /// `xdev` is a valid xenbus device for as long as the callback runs that it is an argument of.
    unsafe fn device<'a>(
        xdev: *mut xen_sys::xenbus_device,
    ) -> &'a Device<device::CoreInternal<'a>> {
        // SAFETY: By this function's requirements; `Device` is transparent.
        unsafe { &*xdev.cast() }
    }

    /// The device of a callback, and what `probe_callback()` stored for it.
    ///
    /// # Safety
    ///
    /// As for [`Self::device`], and the device is bound to this driver.
    unsafe fn bound<'a>(
        xdev: *mut xen_sys::xenbus_device,
    ) -> (&'a Device<device::CoreInternal<'a>>, Pin<&'a T::Data>) {
        // SAFETY: By this function's requirements.
        let dev = unsafe { Self::device(xdev) };
        let generic: &device::Device<device::CoreInternal<'_>> = dev.as_ref();

        // SAFETY: The device is bound, so `probe_callback()` has stored a `T::Data`, and it is
        // dropped only after the last callback.
        (dev, unsafe { generic.drvdata_borrow::<T::Data>() })
    }

    extern "C" fn probe_callback(
        xdev: *mut xen_sys::xenbus_device,
        _id: *const xen_sys::xenbus_device_id,
    ) -> c_int {
        // SAFETY: xenbus gives its callbacks a valid device.
        let dev = unsafe { Self::device(xdev) };

        from_result(|| {
            let generic: &device::Device<device::CoreInternal<'_>> = dev.as_ref();

            generic.set_drvdata(T::probe(dev))?;
            Ok(0)
        })
    }

    extern "C" fn otherend_changed_callback(
        xdev: *mut xen_sys::xenbus_device,
        state: xen_sys::xenbus_state,
    ) {
        // SAFETY: The watch is set after `probe_callback()` and taken away before
        // `remove_callback()`.
        let (dev, data) = unsafe { Self::bound(xdev) };

        T::backend_changed(dev, data, State::from_raw(state));
    }

    extern "C" fn resume_callback(xdev: *mut xen_sys::xenbus_device) -> c_int {
        // SAFETY: xenbus resumes bound devices only.
        let (dev, data) = unsafe { Self::bound(xdev) };

        from_result(|| T::resume(dev, data).map(|()| 0))
    }

    extern "C" fn remove_callback(xdev: *mut xen_sys::xenbus_device) {
        // SAFETY: xenbus removes bound devices only.
        let (dev, data) = unsafe { Self::bound(xdev) };

        T::unbind(dev, data);
    }
}

/// A frontend device on xenbus.
///
/// # Invariants
///
/// Represents a valid `struct xenbus_device` that was made by xenbus.
#[repr(transparent)]
pub(crate) struct Device<Ctx: device::DeviceContext = device::Normal>(
    Opaque<xen_sys::xenbus_device>,
    PhantomData<Ctx>,
);

impl<Ctx: device::DeviceContext> Device<Ctx> {
    pub(super) fn as_raw(&self) -> *mut xen_sys::xenbus_device {
        self.0.get()
    }

    /// The device's own folder in xenstore.
    pub(crate) fn folder(&self) -> &CStr {
        // SAFETY: The name is terminated and is freed together with the device.
        unsafe { CStr::from_char_ptr((*self.as_raw()).nodename) }
    }

    /// Tells the other end this end's state, unless it is what it was told last. The caller sees
    /// to it that nobody else does so at the same time.
    pub(crate) fn switch_state(&self, state: State) {
        // SAFETY: By the type invariant. The function reports its own failures, and always
        // returns 0.
        unsafe { xen_sys::xenbus_switch_state(self.as_raw(), state.as_raw()) };
    }

    /// [`switch_state`](Self::switch_state) to [`State::Closed`], which also lets a shutdown go on
    /// that waits for it.
    pub(crate) fn closed(&self) {
        // SAFETY: By the type invariant; always returns 0.
        unsafe { xen_sys::xenbus_frontend_closed(self.as_raw()) };
    }

    /// Puts an error into the kernel's log and, for the toolstack to find, into xenstore.
    pub(crate) fn report(&self, error: Error, message: &CStr) {
        // SAFETY: By the type invariant; the format takes one terminated string.
        unsafe {
            xen_sys::xenbus_dev_error(
                self.as_raw(),
                error.to_errno(),
                c"%s".as_char_ptr(),
                message.as_char_ptr(),
            )
        };
    }
}

impl<'a> Device<device::Core<'a>> {
    /// The backend's folder in xenstore. It may change between two callbacks.
    fn backend_folder(&self) -> Result<&CStr> {
        // SAFETY: By the type invariant; xenbus changes the field only around its callbacks.
        let folder = unsafe { (*self.as_raw()).otherend };

        if folder.is_null() {
            return Err(ENOENT);
        }
        // SAFETY: xenbus stores a terminated string, and frees it only around its callbacks.
        Ok(unsafe { CStr::from_char_ptr(folder) })
    }

    /// The domain that the backend runs in.
    pub(crate) fn backend_domain(&self) -> c_int {
        // SAFETY: By the type invariant; xenbus changes the field only around its callbacks.
        unsafe { (*self.as_raw()).otherend_id }
    }

    /// Asks xenstore for the backend's state.
    pub(crate) fn backend_state(&self) -> State {
        let Ok(folder) = self.backend_folder() else {
            return State::Unknown;
        };

        // SAFETY: By the type invariant, and the folder's name is terminated.
        State::from_raw(unsafe {
            xen_sys::xenbus_read_driver_state(self.as_raw(), folder.as_char_ptr())
        })
    }

    /// Reads a node of the backend's.
    pub(crate) fn backend_value(&self, node: &CStr) -> Result<Value> {
        Value::read(self.backend_folder()?, node)
    }
}

// SAFETY: `Device` is a transparent wrapper whose layout does not depend on its context.
kernel::impl_device_context_deref!(unsafe { Device });
kernel::impl_device_context_into_aref!(Device);

// SAFETY: xenbus devices are reference-counted by their embedded `struct device`.
unsafe impl AlwaysRefCounted for Device {
    fn inc_ref(&self) {
        // SAFETY: The existence of a reference means that the count is not zero.
        unsafe { bindings::get_device(&raw mut (*self.as_raw()).dev) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        let xdev: *mut xen_sys::xenbus_device = obj.cast().as_ptr();

        // SAFETY: By this function's requirements the count is not zero.
        unsafe { bindings::put_device(&raw mut (*xdev).dev) };
    }
}

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the type invariant the embedded device is valid for as long as `self` is.
        unsafe { device::Device::from_raw(&raw mut (*self.as_raw()).dev) }
    }
}

// SAFETY: A device may be released from any thread.
unsafe impl Send for Device {}

// SAFETY: What may be called on a `Device<Normal>` is thread-safe, or says what its caller owes.
unsafe impl Sync for Device {}

/// Declares a kernel module with one frontend driver. Takes what `module!` takes, with the
/// [`Driver`] as `type`.
macro_rules! module_xenbus_driver {
    (type: $type:ty, $($f:tt)*) => {
        mod folder {
            use ::kernel::prelude::*;

            ::kernel::sync::global_lock! {
                // SAFETY: `DriverModule::init()` initialises it, before there is a device.
                pub(super) unsafe(uninit) static DIR: Mutex<Option<::kernel::debugfs::Dir>> = None;
            }
        }

        impl $crate::xen::debugfs::HasFolder for $type {
            fn dir() -> Option<::kernel::debugfs::Dir> {
                folder::DIR.lock().clone()
            }
        }

        #[::kernel::prelude::pin_data]
        struct DriverModule {
            #[pin]
            _driver: ::kernel::driver::Registration<$crate::xen::bus::Adapter<$type>>,
            // Goes after the driver has let go of its devices.
            _folder: $crate::xen::debugfs::Root<folder::DIR>,
        }

        impl ::kernel::InPlaceModule for DriverModule {
            fn init(
                module: &'static ::kernel::ThisModule,
            ) -> impl ::pin_init::PinInit<Self, ::kernel::error::Error> {
                ::kernel::prelude::try_pin_init!(Self {
                    // SAFETY: A module is initialised once, and the driver is registered below.
                    _folder: unsafe {
                        $crate::xen::debugfs::Root::new(
                            &folder::DIR,
                            <$type as $crate::xen::bus::Driver>::FOLDER,
                        )
                    },
                    _driver <- ::kernel::driver::Registration::new(
                        <Self as ::kernel::ModuleMetadata>::NAME,
                        module,
                    ),
                })
            }
        }

        ::kernel::prelude::module! {
            type: DriverModule,
            $($f)*
        }
    };
}
pub(crate) use module_xenbus_driver;
