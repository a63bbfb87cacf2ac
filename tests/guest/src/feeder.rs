//! Feeder of a video node: shows an image repeatedly until the test asks for another.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::node::{Node, OUTPUT, Output};

/// A thread that shows images.
pub struct Feeder {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<()>>,
}

struct Shared {
    pictures: Vec<Vec<u8>>,
    shown: AtomicUsize,
    /// How often the current image was passed to the driver.
    played: AtomicUsize,
    end: AtomicBool,
}

impl Feeder {
    /// Starts with the first image, which is queued when this returns.
    pub fn start(
        path: &str,
        fourcc: &[u8; 4],
        width: u32,
        height: u32,
        pictures: Vec<Vec<u8>>,
    ) -> io::Result<Self> {
        if pictures.is_empty() {
            return Err(io::Error::other("no images"));
        }
        let node = Node::open(path)?;
        let set = node.set_format(OUTPUT, fourcc, width, height)?;
        let wanted = format!("{} {width}x{height}", String::from_utf8_lossy(fourcc));
        if set != wanted {
            return Err(io::Error::other(format!("{path} takes {set} instead of {wanted}")));
        }
        let shared = Arc::new(Shared {
            pictures,
            shown: AtomicUsize::new(0),
            played: AtomicUsize::new(0),
            end: AtomicBool::new(false),
        });
        let thread = if node.driver()? == "vivid" {
            let mut player = Player::new(node, &shared)?;
            // One pass over the buffers: the node now shows the first image.
            for _ in 0..player.output.buffers() {
                player.step(&shared)?;
            }
            let shared = shared.clone();
            thread::spawn(move || player.run(&shared))
        } else {
            let mut node = node;
            node.write(&shared.pictures[0])?;
            let shared = shared.clone();
            thread::spawn(move || write(&mut node, &shared))
        };
        Ok(Self { shared, thread })
    }

    /// Switches to another image.
    pub fn show(&self, index: usize) -> io::Result<()> {
        if index >= self.shared.pictures.len() {
            return Err(io::Error::other("no such image"));
        }
        if self.thread.is_finished() {
            return Err(io::Error::other("the feeder has failed"));
        }
        self.shared.shown.store(index, Ordering::Release);
        self.shared.played.store(0, Ordering::Release);
        Ok(())
    }

    /// Returns how often the image was passed to the driver, give or take one.
    pub fn played(&self) -> usize {
        self.shared.played.load(Ordering::Acquire)
    }

    /// Stops the thread; returns the error if it had failed before.
    pub fn end(self) -> io::Result<()> {
        self.shared.end.store(true, Ordering::Release);
        self.thread.join().map_err(|_| io::Error::other("the feeder panicked"))?
    }
}

impl Shared {
    fn shown(&self) -> usize {
        self.shown.load(Ordering::Acquire)
    }

    fn ended(&self) -> bool {
        self.end.load(Ordering::Acquire)
    }
}

/// Output to vivid, which does not support `write`.
struct Player {
    output: Output,
    /// The image in each buffer.
    held: Vec<usize>,
}

impl Player {
    fn new(node: Node, shared: &Shared) -> io::Result<Self> {
        let mut output = Output::new(node)?;
        for index in 0..output.buffers() {
            output.fill(index, &shared.pictures[0])?;
            output.queue(index, shared.pictures[0].len())?;
        }
        output.start()?;
        let held = vec![0; output.buffers() as usize];
        Ok(Self { output, held })
    }

    fn step(&mut self, shared: &Shared) -> io::Result<()> {
        let buffer = self.output.dequeue()?;
        let shown = shared.shown();
        let picture = &shared.pictures[shown];
        // Copying is expensive on the emulated machine.
        if std::mem::replace(&mut self.held[buffer as usize], shown) != shown {
            self.output.fill(buffer, picture)?;
        }
        self.output.queue(buffer, picture.len())?;
        shared.played.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn run(&mut self, shared: &Shared) -> io::Result<()> {
        while !shared.ended() {
            self.step(shared)?;
        }
        Ok(())
    }
}

/// Writes to v4l2loopback, at 25 images per second.
fn write(node: &mut Node, shared: &Shared) -> io::Result<()> {
    while !shared.ended() {
        thread::sleep(Duration::from_millis(40));
        node.write(&shared.pictures[shared.shown()])?;
        shared.played.fetch_add(1, Ordering::Release);
    }
    Ok(())
}
