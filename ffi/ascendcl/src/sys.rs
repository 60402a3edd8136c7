//! The C side: names, types and constants of AscendCL as CANN 8.1 and 9.1 declare them. Nothing is linked.

use libloading::Library;
use std::ffi::{c_char, c_int};

/// `aclError`: 0 is success.
pub type AclError = c_int;

/// `ACL_SUCCESS`
pub const SUCCESS: AclError = 0;
/// `ACL_ERROR_REPEAT_INITIALIZE`: somebody in this process has called `aclInit` already.
pub const REPEAT_INITIALIZE: AclError = 100002;

/// `aclError aclInit(const char *jsonPathOrNull)`
pub type Init = unsafe extern "C" fn(*const c_char) -> AclError;
/// `aclError aclFinalize(void)`
pub type Finalize = unsafe extern "C" fn() -> AclError;
/// `const char *aclGetRecentErrMsg(void)`: of the calling thread; may be NULL; the text lives until the next call of it.
pub type GetRecentErrMsg = unsafe extern "C" fn() -> *const c_char;
/// `aclError aclrtGetVersion(int32_t *major, int32_t *minor, int32_t *patch)`: of the interface, not of the toolkit.
pub type GetVersion = unsafe extern "C" fn(*mut i32, *mut i32, *mut i32) -> AclError;
/// `aclError aclrtGetDeviceCount(uint32_t *count)`
pub type GetDeviceCount = unsafe extern "C" fn(*mut u32) -> AclError;
/// `const char *aclrtGetSocName(void)`: NULL on failure; a static string of the library.
pub type GetSocName = unsafe extern "C" fn() -> *const c_char;

/// The functions that a probe calls.
#[derive(Clone, Copy, Debug)]
pub struct Api {
    /// `aclInit`
    pub init: Init,
    /// `aclFinalize`
    pub finalize: Finalize,
    /// `aclGetRecentErrMsg`
    pub get_recent_err_msg: GetRecentErrMsg,
    /// `aclrtGetVersion`
    pub get_version: GetVersion,
    /// `aclrtGetDeviceCount`
    pub get_device_count: GetDeviceCount,
    /// `aclrtGetSocName`
    pub get_soc_name: GetSocName,
}

impl Api {
    /// Looks every function up; the error is the name of the first that is missing.
    ///
    /// # Safety
    /// The library is AscendCL (its functions have the types above) and is never unloaded.
    pub unsafe fn load(library: &Library) -> Result<Api, &'static str> {
        // SAFETY: each type is that of the C declaration of its name; the caller keeps the library.
        unsafe {
            Ok(Api {
                init: *library.get("aclInit").map_err(|_| "aclInit")?,
                finalize: *library.get("aclFinalize").map_err(|_| "aclFinalize")?,
                get_recent_err_msg: *library.get("aclGetRecentErrMsg").map_err(|_| "aclGetRecentErrMsg")?,
                get_version: *library.get("aclrtGetVersion").map_err(|_| "aclrtGetVersion")?,
                get_device_count: *library.get("aclrtGetDeviceCount").map_err(|_| "aclrtGetDeviceCount")?,
                get_soc_name: *library.get("aclrtGetSocName").map_err(|_| "aclrtGetSocName")?,
            })
        }
    }
}
