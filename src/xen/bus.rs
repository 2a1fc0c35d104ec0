// SPDX-License-Identifier: GPL-2.0

//! The xenbus bus, from a frontend driver's side.
//!
//! C header: [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)

use super::store::Value;
use crate::xen_sys;
use core::{
    marker::PhantomData,
    mem::offset_of,
    ops::Deref,
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
    new_mutex,
    prelude::*,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        Arc,
        Mutex,
        MutexGuard, //
    },
    types::Opaque,
    ThisModule, //
};

/// xenbus device states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There is no state node, it cannot be read, or its value has no meaning.
    Unknown,
    /// The device is being set up.
    Initialising,
    /// The backend waits for the frontend's details.
    InitWait,
    /// The frontend has published its details.
    Initialised,
    /// In use.
    Connected,
    /// Being closed.
    Closing,
    /// Closed.
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

    /// The state's number in xenstore.
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
    /// The driver's private data of one bound device.
    type Data: Send + Sync + 'static;

    /// The device type in xenstore, at most 31 bytes: `device/TYPE/N`.
    const DEVICE_TYPE: &'static CStr;

    /// Whether a guest can do without the device. While a device that has a driver is not
    /// connected, xenbus holds the boot and `modprobe` for up to 30 s, and for an essential device
    /// for 270 s more.
    const NOT_ESSENTIAL: bool;

    /// Binds the driver to a device. The backend's state is not watched before this returns.
    fn probe(dev: &Device<device::Core<'_>>, bus: Arc<BusLock>) -> impl PinInit<Self::Data, Error>;

    /// The backend's state was written. Runs in the thread that handles all of xenstore's watches,
    /// never concurrently for one device.
    fn backend_changed(dev: &Device<device::Core<'_>>, data: Pin<&Self::Data>, state: State);

    /// The domain was restored or migrated: page, grant and event channel are no longer connected,
    /// and the backend may be another one.
    ///
    /// This cannot fail: xenbus (as of 7.3) does not watch the backend again after an error.
    fn resume(dev: &Device<device::Core<'_>>, data: Pin<&Self::Data>);

    /// The device is about to be unbound. `data` is dropped afterwards.
    fn unbind(dev: &Device<device::Core<'_>>, data: Pin<&Self::Data>);
}

/// Serialises what changes a device's xenbus state, which `xenbus_switch_state()` does not do, and
/// tells whether the device is still bound.
///
/// xenbus itself changes the state while no driver is bound, before it calls the driver's resume
/// callback, and, racing with all drivers, when the system shuts down.
#[pin_data]
pub(crate) struct BusLock {
    /// `None` when the device is no longer bound.
    #[pin]
    dev: Mutex<Option<ARef<Device>>>,
}

impl BusLock {
    fn new(dev: &Device) -> Result<Arc<Self>> {
        let dev = dev.into();

        Arc::pin_init(pin_init!(Self { dev <- new_mutex!(Some(dev)) }), GFP_KERNEL)
    }

    /// Takes the lock. [`ENODEV`] when the device is no longer bound.
    pub(crate) fn lock(&self) -> Result<BusGuard<'_>> {
        let dev = self.dev.lock();

        if dev.is_none() {
            return Err(ENODEV);
        }
        // INVARIANT: It was just checked.
        Ok(BusGuard(dev))
    }

    /// Lets nobody take the lock any more.
    fn revoke(&self) {
        drop(self.dev.lock().take());
    }
}

/// The right to change the state of a bound device.
///
/// # Invariants
///
/// The device is there, and bound for as long as this guard exists.
pub(crate) struct BusGuard<'a>(MutexGuard<'a, Option<ARef<Device>>>);

impl BusGuard<'_> {
    /// Tells the backend the frontend's state, unless it is the last one that was told.
    pub(crate) fn switch_state(&mut self, state: State) {
        // SAFETY: By the type invariants; the exclusive guard keeps others from changing the state.
        // The function reports its own failures, and always returns 0.
        unsafe { xen_sys::xenbus_switch_state(self.as_raw(), state.as_raw()) };
    }
}

impl Deref for BusGuard<'_> {
    type Target = Device;

    #[inline]
    fn deref(&self) -> &Device {
        match &*self.0 {
            Some(dev) => dev,
            // By the type invariants.
            None => unreachable!(),
        }
    }
}

/// What the adapter stores for a bound device.
#[pin_data]
pub(crate) struct DriverData<D> {
    #[pin]
    data: D,
    bus: Arc<BusLock>,
}

impl<D> DriverData<D> {
    /// The driver's part.
    fn driver_data(self: Pin<&Self>) -> Pin<&D> {
        // SAFETY: The field is structurally pinned.
        unsafe { self.map_unchecked(|this| &this.data) }
    }
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
// `DriverData` is what `probe_callback()` stores.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = xen_sys::xenbus_driver;
    type DriverData<'bound> = DriverData<T::Data>;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, driver);
}

// SAFETY: A driver that was registered may be unregistered.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    #[inline]
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
            (*raw).not_essential = T::NOT_ESSENTIAL;
            // IMA, which comes later in the boot, needs the device probed, whatever the command
            // line says.
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

    #[inline]
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
    ) -> (
        &'a Device<device::CoreInternal<'a>>,
        Pin<&'a DriverData<T::Data>>,
    ) {
        // SAFETY: By this function's requirements.
        let dev = unsafe { Self::device(xdev) };
        let generic: &device::Device<device::CoreInternal<'_>> = dev.as_ref();

        // SAFETY: The device is bound, so `probe_callback()` has stored a `DriverData`, and it is
        // dropped only after the last callback.
        (dev, unsafe {
            generic.drvdata_borrow::<DriverData<T::Data>>()
        })
    }

    extern "C" fn probe_callback(
        xdev: *mut xen_sys::xenbus_device,
        _id: *const xen_sys::xenbus_device_id,
    ) -> c_int {
        // SAFETY: xenbus gives its callbacks a valid device.
        let dev = unsafe { Self::device(xdev) };

        from_result(|| {
            let generic: &device::Device<device::CoreInternal<'_>> = dev.as_ref();
            let bus = BusLock::new(dev)?;
            let data = T::probe(dev, bus.clone());
            let lock = bus.clone();
            let init = try_pin_init!(DriverData {
                data <- data,
                bus: bus.clone(),
            });

            generic
                .set_drvdata(init)
                // No driver is bound any more.
                .inspect_err(|_| lock.revoke())?;
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

        T::backend_changed(dev, data.driver_data(), State::from_raw(state));
    }

    extern "C" fn resume_callback(xdev: *mut xen_sys::xenbus_device) -> c_int {
        // SAFETY: xenbus resumes bound devices only.
        let (dev, data) = unsafe { Self::bound(xdev) };

        T::resume(dev, data.driver_data());
        0
    }

    extern "C" fn remove_callback(xdev: *mut xen_sys::xenbus_device) {
        // SAFETY: xenbus removes bound devices only.
        let (dev, data) = unsafe { Self::bound(xdev) };

        T::unbind(dev, data.driver_data());
        // xenbus closes the device now.
        data.bus.revoke();
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

    /// The device's own directory in xenstore.
    pub(crate) fn nodename(&self) -> &CStr {
        // SAFETY: The name is terminated and is freed together with the device.
        unsafe { CStr::from_char_ptr((*self.as_raw()).nodename) }
    }

    /// Reports an error to the kernel log and, for the toolstack, to xenstore.
    pub(crate) fn dev_error(&self, error: Error, message: &CStr) {
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
    /// The backend's directory in xenstore. It may change between two callbacks.
    fn otherend(&self) -> Result<&CStr> {
        // SAFETY: By the type invariant; xenbus changes the field only around its callbacks.
        let otherend = unsafe { (*self.as_raw()).otherend };

        if otherend.is_null() {
            return Err(ENOENT);
        }
        // SAFETY: xenbus stores a terminated string, and frees it only around its callbacks.
        Ok(unsafe { CStr::from_char_ptr(otherend) })
    }

    /// The domain that the backend runs in.
    pub(crate) fn otherend_id(&self) -> c_int {
        // SAFETY: By the type invariant; xenbus changes the field only around its callbacks.
        unsafe { (*self.as_raw()).otherend_id }
    }

    /// Reads the backend's state from xenstore.
    pub(crate) fn backend_state(&self) -> State {
        let Ok(otherend) = self.otherend() else {
            return State::Unknown;
        };

        // SAFETY: By the type invariant, and the directory's name is terminated.
        State::from_raw(unsafe {
            xen_sys::xenbus_read_driver_state(self.as_raw(), otherend.as_char_ptr())
        })
    }

    /// Reads one of the backend's nodes. [`ENOENT`] when there is none.
    pub(crate) fn read_otherend(&self, node: &CStr) -> Result<Value> {
        Value::read(self.otherend()?, node)
    }

    /// Reads the backend's node `dir`/`index`. [`ENOENT`] when there is none.
    pub(crate) fn read_otherend_item(&self, dir: &CStr, index: usize) -> Result<Value> {
        Value::read_item(self.otherend()?, dir, index)
    }
}

// SAFETY: `Device` is a transparent wrapper whose layout does not depend on its context.
kernel::impl_device_context_deref!(unsafe { Device });
kernel::impl_device_context_into_aref!(Device);

// SAFETY: xenbus devices are reference-counted by their embedded `struct device`.
unsafe impl AlwaysRefCounted for Device {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: The existence of a reference means that the count is not zero.
        unsafe { bindings::get_device(&raw mut (*self.as_raw()).dev) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        let xdev: *mut xen_sys::xenbus_device = obj.cast().as_ptr();

        // SAFETY: By this function's requirements the count is not zero.
        unsafe { bindings::put_device(&raw mut (*xdev).dev) };
    }
}

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    #[inline]
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the type invariant the embedded device is valid for as long as `self` is.
        unsafe { device::Device::from_raw(&raw mut (*self.as_raw()).dev) }
    }
}

// SAFETY: A device may be released from any thread.
unsafe impl Send for Device {}

// SAFETY: What may be called on a `Device<Normal>` only reads fields that do not change, or reports
// errors, which is thread-safe. The state is changed through a [`BusGuard`] only.
unsafe impl Sync for Device {}

/// Declares a kernel module with one frontend driver. Takes what `module!` takes, with the
/// [`Driver`] as `type`.
macro_rules! module_xenbus_driver {
    ($($f:tt)*) => {
        ::kernel::module_driver!(<T>, $crate::xen::bus::Adapter<T>, { $($f)* });
    };
}
pub(crate) use module_xenbus_driver;
