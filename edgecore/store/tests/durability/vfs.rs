//! A layer between SQLite and the file system that records what SQLite writes and syncs, and that
//! fails on demand. Becomes the default of this process.
#![expect(unsafe_code, reason = "SQLite's file system is an interface of C")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem;
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use rusqlite::ffi;

/// One thing that SQLite did to a file of the recorded folder, or the test beside it.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write {
        file: String,
        offset: usize,
        data: Vec<u8>,
    },
    Truncate {
        file: String,
        length: usize,
    },
    Sync {
        file: String,
    },
    Delete {
        file: String,
    },
    /// So many commits have been answered with success.
    Acknowledged(usize),
}

/// What a failing operation answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    DiskFull,
    WriteFails,
    SyncFails,
}

#[derive(Default)]
struct State {
    folder: String,
    ops: Vec<Op>,
    /// Operations until the fault, and how many then fail.
    fault: Option<(usize, usize, Fault)>,
}

static STATE: Mutex<State> =
    Mutex::new(State { folder: String::new(), ops: Vec::new(), fault: None });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to record what happens in `folder`, and forgets what was recorded before.
pub(crate) fn record(folder: &Path) {
    install();
    let folder = folder.to_str().unwrap().to_owned();
    *state() = State { folder, ..State::default() };
}

/// Ends recording.
pub(crate) fn recorded() -> Vec<Op> {
    let mut state = state();
    state.folder.clear();
    state.fault = None;

    mem::take(&mut state.ops)
}

pub(crate) fn acknowledged(commits: usize) {
    state().ops.push(Op::Acknowledged(commits));
}

/// Lets `failures` operations that `fault` can hit fail, after the next `after` of them.
pub(crate) fn fail(after: usize, failures: usize, fault: Fault) {
    state().fault = Some((after, failures, fault));
}

/// Whether the fault is over, having hit what it was to hit.
pub(crate) fn has_failed() -> bool {
    state().fault.is_none()
}

/// The code of the fault, if this operation is to fail.
fn faulted(is_sync: bool) -> Option<c_int> {
    let mut state = state();
    let (after, failures, fault) = state.fault?;
    let (code, hit) = match fault {
        Fault::DiskFull => (ffi::SQLITE_FULL, !is_sync),
        Fault::WriteFails => (ffi::SQLITE_IOERR_WRITE, !is_sync),
        Fault::SyncFails => (ffi::SQLITE_IOERR_FSYNC, is_sync),
    };
    if !hit {
        return None;
    }
    state.fault = match (after, failures) {
        (0, 1) => None,
        (0, _) => Some((0, failures - 1, fault)),
        _ => Some((after - 1, failures, fault)),
    };

    (after == 0).then_some(code)
}

/// What SQLite allocates for a file: this, and behind it what the real layer needs.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    /// Name within the recorded folder; null for other files.
    name: *mut String,
}

/// The real layer, found once. SQLite keeps it for the life of the process.
struct Real(*mut ffi::sqlite3_vfs);

// SAFETY: SQLite's layers are made to be called from any thread.
unsafe impl Send for Real {}
// SAFETY: as above.
unsafe impl Sync for Real {}

static REAL: Mutex<Real> = Mutex::new(Real(ptr::null_mut()));

fn real_vfs() -> *mut ffi::sqlite3_vfs {
    REAL.lock().unwrap_or_else(PoisonError::into_inner).0
}

fn install() {
    static ONCE: Once = Once::new();
    // SAFETY: the default layer exists for the life of the process, and so does the leaked copy.
    ONCE.call_once(|| unsafe {
        let real = ffi::sqlite3_vfs_find(ptr::null());
        REAL.lock().unwrap().0 = real;
        let mut shim = *real;
        shim.zName = c"recording".as_ptr();
        shim.szOsFile += c_int::try_from(size_of::<File>()).unwrap();
        shim.pNext = ptr::null_mut();
        shim.xOpen = Some(open);
        shim.xDelete = Some(delete);
        let shim = Box::leak(Box::new(shim));
        assert_eq!(ffi::sqlite3_vfs_register(shim, 1), ffi::SQLITE_OK);
    });
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // The first version has no shared memory and no mapping: the store must do without.
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// The name of a file within the recorded folder.
fn recorded_name(path: *const c_char) -> Option<String> {
    if path.is_null() {
        return None;
    }
    // SAFETY: SQLite passes names that end with a zero.
    let path = unsafe { CStr::from_ptr(path) }.to_str().ok()?;
    let state = state();
    if state.folder.is_empty() {
        return None;
    }

    path.strip_prefix(&state.folder).map(|name| name.trim_start_matches('/').to_owned())
}

unsafe fn real_file(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: szOsFile has room for the real layer's file behind ours.
    unsafe { file.cast::<File>().add(1).cast() }
}

unsafe fn name(file: *mut ffi::sqlite3_file) -> Option<String> {
    // SAFETY: every file of this layer was opened by `open`, which sets the name.
    unsafe { (*file.cast::<File>()).name.as_ref().cloned() }
}

unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the arguments are SQLite's; the real file is the memory behind ours.
    unsafe {
        (*file).pMethods = ptr::null();
        (*file.cast::<File>()).name = ptr::null_mut();
        let vfs = real_vfs();
        let code = ((*vfs).xOpen.unwrap())(vfs, path, real_file(file), flags, out);
        if code == ffi::SQLITE_OK {
            (*file).pMethods = &raw const METHODS;
            if let Some(name) = recorded_name(path) {
                (*file.cast::<File>()).name = Box::into_raw(Box::new(name));
            }
        }
        code
    }
}

unsafe extern "C" fn delete(
    _vfs: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    sync_folder: c_int,
) -> c_int {
    // SAFETY: the arguments are SQLite's.
    let code = unsafe {
        let vfs = real_vfs();
        ((*vfs).xDelete.unwrap())(vfs, path, sync_folder)
    };
    if code == ffi::SQLITE_OK
        && let Some(file) = recorded_name(path)
    {
        state().ops.push(Op::Delete { file });
    }
    code
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once.
    unsafe {
        let name = mem::replace(&mut (*file.cast::<File>()).name, ptr::null_mut());
        if !name.is_null() {
            drop(Box::from_raw(name));
        }
        let real = real_file(file);
        ((*(*real).pMethods).xClose.unwrap())(real)
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    data: *const c_void,
    length: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: SQLite gives `length` bytes at `data`.
    unsafe {
        let name = name(file);
        if name.is_some()
            && let Some(code) = faulted(false)
        {
            return code;
        }
        let real = real_file(file);
        let code = ((*(*real).pMethods).xWrite.unwrap())(real, data, length, offset);
        if let (ffi::SQLITE_OK, Some(file)) = (code, name) {
            let length = usize::try_from(length).unwrap();
            let data = std::slice::from_raw_parts(data.cast::<u8>(), length).to_vec();
            let offset = usize::try_from(offset).unwrap();
            state().ops.push(Op::Write { file, offset, data });
        }
        code
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, length: i64) -> c_int {
    // SAFETY: forwarded as given.
    unsafe {
        let real = real_file(file);
        let code = ((*(*real).pMethods).xTruncate.unwrap())(real, length);
        if let (ffi::SQLITE_OK, Some(file)) = (code, name(file)) {
            let length = usize::try_from(length).unwrap();
            state().ops.push(Op::Truncate { file, length });
        }
        code
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: forwarded as given.
    unsafe {
        let name = name(file);
        if name.is_some()
            && let Some(code) = faulted(true)
        {
            return code;
        }
        let real = real_file(file);
        let code = ((*(*real).pMethods).xSync.unwrap())(real, flags);
        if let (ffi::SQLITE_OK, Some(file)) = (code, name) {
            state().ops.push(Op::Sync { file });
        }
        code
    }
}

/// Calls the method of the same name of the real file.
macro_rules! forward {
    ($name:ident, $method:ident $(, $arg:ident: $type:ty)*) => {
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) -> c_int {
            // SAFETY: forwarded as given, to the real file behind ours.
            unsafe {
                let real = real_file(file);
                ((*(*real).pMethods).$method.unwrap())(real $(, $arg)*)
            }
        }
    };
}

forward!(read, xRead, into: *mut c_void, length: c_int, offset: i64);
forward!(file_size, xFileSize, size: *mut i64);
forward!(lock, xLock, level: c_int);
forward!(unlock, xUnlock, level: c_int);
forward!(check_reserved_lock, xCheckReservedLock, out: *mut c_int);
forward!(file_control, xFileControl, op: c_int, arg: *mut c_void);
forward!(sector_size, xSectorSize);
forward!(device_characteristics, xDeviceCharacteristics);
