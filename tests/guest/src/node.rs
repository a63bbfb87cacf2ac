//! Video nodes by raw ioctls: the tests need more than the safe interface of crate `v4l` offers.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem::{self, size_of};
use std::os::fd::AsRawFd;
use std::ptr;
use std::slice;

use v4l::v4l_sys::{
    v4l2_bt_timings, v4l2_buffer, v4l2_capability, v4l2_control, v4l2_dv_timings, v4l2_format,
    v4l2_queryctrl, v4l2_requestbuffers,
};
use v4l::v4l2;
use v4l::v4l2::vidioc;

/// Buffer type of a camera.
pub const CAPTURE: u32 = 1;
/// Buffer type of an output node.
pub const OUTPUT: u32 = 2;

const MEMORY_MMAP: u32 = 1;
const FIELD_NONE: u32 = 1;
const CONTROL_NEXT: u32 = 0x8000_0000;
// `vidioc` lacks it: _IOWR('V', 87, struct v4l2_dv_timings).
const VIDIOC_S_DV_TIMINGS: vidioc::_IOC_TYPE = (3 << 30)
    | ((size_of::<v4l2_dv_timings>() as vidioc::_IOC_TYPE) << 16)
    | ((b'V' as vidioc::_IOC_TYPE) << 8)
    | 87;

/// Structures of numbers that V4L2 ioctls take: any bits are valid, zeros too, and no request made
/// here follows a pointer in them.
///
/// # Safety
/// The type must be such a structure.
pub unsafe trait Plain: Copy {
    /// All zeros.
    fn zeroed() -> Self {
        // SAFETY: zeros are valid by the contract of the trait.
        unsafe { mem::zeroed() }
    }
}

macro_rules! plain {
    ($($name:ty),*) => {
        $(
            // SAFETY: a C structure of numbers; the pointers in some of its unions are used with
            // other requests only.
            unsafe impl Plain for $name {}
        )*
    };
}

plain!(
    u32,
    v4l2_bt_timings,
    v4l2_buffer,
    v4l2_capability,
    v4l2_control,
    v4l2_dv_timings,
    v4l2_format,
    v4l2_queryctrl,
    v4l2_requestbuffers
);

/// Parses a fourcc of four letters.
pub fn fourcc(letters: &str) -> io::Result<[u8; 4]> {
    letters
        .as_bytes()
        .try_into()
        .map_err(|_| io::Error::other(format!("{letters:?} is not a fourcc")))
}

/// An open video node.
pub struct Node(File);

impl Node {
    /// Opens a node.
    pub fn open(path: &str) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self).map_err(|e| named(e, path))
    }

    fn ioctl<T: Plain>(
        &self,
        name: &str,
        request: vidioc::_IOC_TYPE,
        argument: &mut T,
    ) -> io::Result<()> {
        // Requests include the size of their structure; u32 stands for the int of the plain ones.
        assert_eq!((request >> 16) as usize & 0x3fff, size_of::<T>(), "{name}");
        // SAFETY: the argument is as long as the request says, and plain.
        unsafe {
            v4l2::ioctl(self.0.as_raw_fd(), request, ptr::from_mut(argument).cast::<c_void>())
        }
        .map_err(|e| named(e, name))
    }

    /// Returns the name of the driver.
    pub fn driver(&self) -> io::Result<String> {
        let mut capability = v4l2_capability::zeroed();
        self.ioctl("VIDIOC_QUERYCAP", vidioc::VIDIOC_QUERYCAP, &mut capability)?;
        Ok(String::from_utf8_lossy(&capability.driver).trim_end_matches('\0').to_owned())
    }

    /// Sets the control of this name, or presses it if it is a button.
    pub fn set_control(&self, name: &str, value: i32) -> io::Result<()> {
        let mut query = v4l2_queryctrl::zeroed();
        loop {
            query.id |= CONTROL_NEXT;
            self.ioctl("VIDIOC_QUERYCTRL", vidioc::VIDIOC_QUERYCTRL, &mut query)
                .map_err(|e| named(e, &format!("control {name:?}")))?;
            if String::from_utf8_lossy(&query.name).trim_end_matches('\0') == name {
                break;
            }
        }
        let mut control = v4l2_control { id: query.id, value };
        self.ioctl("VIDIOC_S_CTRL", vidioc::VIDIOC_S_CTRL, &mut control)
    }

    /// Selects an input.
    pub fn set_input(&self, mut index: u32) -> io::Result<()> {
        self.ioctl("VIDIOC_S_INPUT", vidioc::VIDIOC_S_INPUT, &mut index)
    }

    /// Sets the signal of an HDMI cable: 640x480 at 60 frames per second, as in CEA-861.
    pub fn set_timings(&self) -> io::Result<()> {
        let bt = v4l2_bt_timings {
            width: 640,
            height: 480,
            pixelclock: 25_175_000,
            hfrontporch: 16,
            hsync: 96,
            hbackporch: 48,
            vfrontporch: 10,
            vsync: 2,
            vbackporch: 33,
            ..Plain::zeroed()
        };
        let mut timings = v4l2_dv_timings::zeroed();
        timings.__bindgen_anon_1.bt = bt;
        self.ioctl("VIDIOC_S_DV_TIMINGS", VIDIOC_S_DV_TIMINGS, &mut timings)
    }

    /// Requests a format; returns the one that the driver sets.
    pub fn set_format(
        &self,
        kind: u32,
        fourcc: &[u8; 4],
        width: u32,
        height: u32,
    ) -> io::Result<String> {
        let mut format = v4l2_format::zeroed();
        format.type_ = kind;
        format.fmt.pix.width = width;
        format.fmt.pix.height = height;
        format.fmt.pix.pixelformat = u32::from_le_bytes(*fourcc);
        format.fmt.pix.field = FIELD_NONE;
        self.ioctl("VIDIOC_S_FMT", vidioc::VIDIOC_S_FMT, &mut format)?;
        // SAFETY: both buffer types have this member of the union.
        let set = unsafe { format.fmt.pix };
        let letters = set.pixelformat.to_le_bytes();
        Ok(format!("{} {}x{}", String::from_utf8_lossy(&letters), set.width, set.height))
    }

    /// Passes one image to the driver by `write`.
    pub fn write(&mut self, picture: &[u8]) -> io::Result<()> {
        self.0.write_all(picture)
    }
}

/// Buffers of a streaming output node.
pub struct Output {
    node: Node,
    buffers: Vec<Mapping>,
}

impl Output {
    /// Maps the buffers of a node whose format is set. Streaming has not started yet.
    pub fn new(node: Node) -> io::Result<Self> {
        let mut request =
            v4l2_requestbuffers { type_: OUTPUT, memory: MEMORY_MMAP, count: 4, ..Plain::zeroed() };
        node.ioctl("VIDIOC_REQBUFS", vidioc::VIDIOC_REQBUFS, &mut request)?;
        let buffers = (0..request.count)
            .map(|index| {
                let mut buffer = descriptor(index);
                node.ioctl("VIDIOC_QUERYBUF", vidioc::VIDIOC_QUERYBUF, &mut buffer)?;
                // SAFETY: memory of this kind has an offset.
                let offset = unsafe { buffer.m.offset };
                Mapping::new(&node.0, buffer.length as usize, offset.into())
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { node, buffers })
    }

    /// Returns the number of buffers.
    pub fn buffers(&self) -> u32 {
        self.buffers.len() as u32
    }

    /// Copies an image into a buffer that is not queued.
    pub fn fill(&mut self, index: u32, picture: &[u8]) -> io::Result<()> {
        self.buffers[index as usize]
            .bytes()
            .get_mut(..picture.len())
            .ok_or_else(|| io::Error::other("an image is longer than the buffer"))?
            .copy_from_slice(picture);
        Ok(())
    }

    /// Queues a buffer, `length` bytes of which are filled.
    pub fn queue(&mut self, index: u32, length: usize) -> io::Result<()> {
        let mut buffer = descriptor(index);
        buffer.bytesused = length as u32;
        buffer.field = FIELD_NONE;
        self.node.ioctl("VIDIOC_QBUF", vidioc::VIDIOC_QBUF, &mut buffer)
    }

    /// Waits for a buffer that has been shown.
    pub fn dequeue(&mut self) -> io::Result<u32> {
        let mut buffer = descriptor(0);
        self.node.ioctl("VIDIOC_DQBUF", vidioc::VIDIOC_DQBUF, &mut buffer)?;
        Ok(buffer.index)
    }

    /// Lets it play.
    pub fn start(&mut self) -> io::Result<()> {
        self.node.ioctl("VIDIOC_STREAMON", vidioc::VIDIOC_STREAMON, &mut OUTPUT.clone())
    }
}

fn descriptor(index: u32) -> v4l2_buffer {
    v4l2_buffer { index, type_: OUTPUT, memory: MEMORY_MMAP, ..Plain::zeroed() }
}

/// Memory shared with the driver.
struct Mapping {
    start: *mut u8,
    length: usize,
}

// SAFETY: memory of the process, which any thread may use; one `Mapping` owns it.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(file: &File, length: usize, offset: i64) -> io::Result<Self> {
        // PROT_READ | PROT_WRITE and MAP_SHARED.
        let (protection, flags) = (3, 1);
        // SAFETY: the kernel chooses a free place.
        let start = unsafe {
            v4l2::mmap(ptr::null_mut(), length, protection, flags, file.as_raw_fd(), offset)
        }
        .map_err(|e| named(e, "mmap"))?;
        Ok(Self { start: start.cast(), length })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping lives as long as self, which is borrowed. The driver only reads it.
        unsafe { slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no longer borrowed.
        let _ = unsafe { v4l2::munmap(self.start.cast(), self.length) };
    }
}

fn named(e: io::Error, what: &str) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}
