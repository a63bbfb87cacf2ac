//! The settings of a run, resolved and checked: the work reads these and never the flags.

use std::path::PathBuf;

use anyhow::Result;
use vgg_edge::image::resize::Rect;
use vgg_edge::pixel::Color;
use vgg_edge::preprocess::Fit;
use vgg_edge_cli::options::BaseOptions;

use crate::cli::options::Threads;
use crate::collect::{self, CollectOptions};
use crate::model::loader::{ModelLoader, TrustOptions};
use crate::sandbox::{Needs, SandboxOptions};
use crate::source::camera::CameraOptions;
use crate::source::stream::StreamFormat;
use crate::web::Access;

/// All settings of `edge run`.
#[derive(Clone)]
pub struct RunSettings {
    /// The settings file, which a reload reads again.
    pub config: Option<PathBuf>,
    /// Number of frames after which the run ends.
    pub frame_limit: Option<u64>,
    /// The source of frames.
    pub source: SourceSettings,
    /// How scores become a label.
    pub decision: DecisionSettings,
    /// Collecting of frames, if it is on.
    pub collect: Option<CollectSettings>,
    /// The page, if it is served.
    pub web: Option<WebSettings>,
    /// The model.
    pub model: ModelSettings,
    /// The sandbox.
    pub sandbox: SandboxOptions,
    /// Results on stdout.
    pub output: OutputSettings,
}

/// The source of frames. Two that are equal need not be opened again.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSettings {
    /// Name in results and messages.
    pub name: String,
    /// The source.
    pub input: Input,
    /// Whether each frame of a live source is classified, rather than the newest.
    pub every_frame: bool,
}

/// Kinds of sources.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A V4L2 camera.
    Camera(CameraOptions),
    /// Frames on stdin, of a format that was given.
    RawStdin(StreamFormat),
    /// An image or YUV4MPEG2 video on stdin.
    Stdin {
        /// The color encoding of video, in place of the one in its header.
        color: Option<Color>,
    },
    /// An image, a directory of images, or a video file.
    Files {
        /// Its path.
        path: PathBuf,
        /// The color encoding of video, in place of the one in its header.
        color: Option<Color>,
        /// Whether it starts again at the end.
        looped: bool,
        /// Frames per second if it is played live.
        fps: Option<u32>,
    },
}

/// How scores become a label.
#[derive(Clone, Debug)]
pub struct DecisionSettings {
    /// The part of the image that is classified; all of it if `None`.
    pub crop: Option<Rect>,
    /// How that part becomes a square; as the head was trained if `None`.
    pub fit: Option<Fit>,
    /// Least score of a known label, 0 to 1; that of the head if `None`.
    pub threshold: Option<f32>,
    /// Weight of earlier frames in the average of the scores, 0 to below 1.
    pub smooth: f32,
    /// Frames in a row that a new label must lead before it is reported.
    pub min_frames: u32,
    /// Least change of an 8x8 block, in gray levels, for a frame to be classified.
    pub on_motion: Option<f32>,
}

/// Collecting of frames.
#[derive(Clone, Debug)]
pub struct CollectSettings {
    /// Where and how many.
    pub options: CollectOptions,
    /// A frame whose best score is below this is unsure, 0 to 1.
    pub threshold: f32,
}

/// The page.
#[derive(Clone)]
pub struct WebSettings {
    /// Address and token.
    pub access: Access,
    /// The file of the token, which a reload reads again.
    pub token_file: Option<PathBuf>,
}

/// The model.
#[derive(Clone)]
pub struct ModelSettings {
    /// The head file.
    pub head: PathBuf,
    /// The base and its kernel.
    pub base: BaseOptions,
    /// Public keys and the state directory.
    pub trust: TrustOptions,
    /// Whether new files are taken while running.
    pub watch: bool,
    /// Threads of the convolutions.
    pub threads: Threads,
}

/// Results on stdout.
#[derive(Clone, Copy, Debug)]
pub struct OutputSettings {
    /// Whether they are NDJSON.
    pub json: bool,
    /// Whether they are events rather than one result for each frame.
    pub events: bool,
    /// Whether the hash of the feature map is part of a result.
    pub digest: bool,
}

impl SourceSettings {
    /// Whether frames come on stdin, which cannot be opened again.
    pub fn is_stdin(&self) -> bool {
        matches!(self.input, Input::RawStdin(_) | Input::Stdin { .. })
    }
}

impl ModelSettings {
    /// The loader of the model.
    ///
    /// # Errors
    /// As [`ModelLoader::new`].
    pub fn loader(&self) -> Result<ModelLoader> {
        ModelLoader::new(&self.head, &self.base, &self.trust)
    }
}

impl RunSettings {
    /// What must remain accessible in the sandbox: the files that a reload reads again, the source,
    /// the directory of collected frames, the port of the page.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        needs.service();
        // A base that is not found is reported when it is loaded.
        let base = self.model.base.path().ok();
        let token_file = self.web.as_ref().and_then(|web| web.token_file.as_ref());
        let files = [Some(&self.model.head), base.as_ref(), self.config.as_ref(), token_file];
        files.into_iter().flatten().for_each(|path| needs.replaceable(path));
        match &self.source.input {
            Input::Camera(options) => needs.camera(&options.device),
            Input::Files { path, .. } if path.is_dir() => needs.directory(path),
            Input::Files { path, .. } => needs.file(path),
            Input::RawStdin(_) | Input::Stdin { .. } => {}
        }
        if let Some(collect) = &self.collect {
            needs.writable(&collect.options.directory);
        }
        self.model.trust.needs(&mut needs);
        if let Some(web) = &self.web {
            needs.listen(web.access.address().port());
        }
        needs
    }

    /// Creates the directories that the run writes to, which the sandbox requires to exist.
    ///
    /// # Errors
    /// If one cannot be created.
    pub fn create_directories(&self) -> Result<()> {
        if let Some(collect) = &self.collect {
            collect::make_directory(&collect.options.directory)?;
        }
        self.model.trust.create_state()
    }
}
