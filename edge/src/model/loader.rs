//! Loading of a model: head and base are read once, verified, checked against each other, and
//! tested before frames depend on them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use vgg_edge::classifier::Classifier;
use vgg_edge::kernels::Kernel;
use vgg_edge::signature::{Signable, Signed, TrustedKeys};
use vgg_edge::{Backbone, Error, Fingerprint, Head};
use vgg_edge_cli::options::BaseOptions;

use crate::model::store::{ModelId, ModelPart, ModelStore, Record};
use crate::sandbox::Needs;

/// Trusted keys, and the record of versions.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TrustOptions {
    /// Public key that must have signed head and base (host keygen); repeatable
    ///
    /// Versions must not go back: a file older than one that this device had is refused.
    #[arg(long, value_name = "KEY.pub")]
    pub trust: Vec<PathBuf>,

    /// State directory: versions that were accepted, and the last good models of edge run
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

impl TrustOptions {
    /// Adds what must remain accessible in the sandbox.
    pub fn needs(&self, needs: &mut Needs) {
        self.trust.iter().for_each(|key| needs.replaceable(key));
        self.state.iter().for_each(|directory| needs.writable(directory));
    }

    /// Creates the state directory, which the sandbox requires to exist.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create_state(&self) -> Result<()> {
        self.state.as_deref().map_or(Ok(()), |directory| ModelStore::open(directory).map(drop))
    }
}

/// Loads models from their files, and checks the trust in them.
#[derive(Clone)]
pub struct ModelLoader {
    head: PathBuf,
    base: PathBuf,
    kernel: Kernel,
    keys: Option<Arc<TrustedKeys>>,
    state: Option<ModelStore>,
}

/// A head and its base.
pub struct Model {
    /// The head.
    pub head: Arc<Head>,
    /// The base; one that several models share is in memory once.
    pub base: Arc<Backbone>,
    /// Both, by content.
    pub id: ModelId,
    /// The signature of the head, once it is verified.
    pub head_signed: Option<Signed>,
    /// The same of the base.
    pub base_signed: Option<Signed>,
    /// The files' bytes, until copies are stored.
    head_file: Signable,
    base_file: Signable,
}

impl ModelLoader {
    /// Resolves the paths and reads the keys.
    ///
    /// # Errors
    /// Keys that cannot be read, no base, a kernel that the CPU lacks, keys without a state
    /// directory.
    pub fn new(head: &Path, base: &BaseOptions, trust: &TrustOptions) -> Result<Self> {
        let keys = match &trust.trust[..] {
            [] => None,
            paths => Some(Arc::new(TrustedKeys::load(paths)?)),
        };
        let state = trust.state.as_deref().map(ModelStore::open).transpose()?;
        if keys.is_some() && state.is_none() {
            bail!(vgg_edge_cli::terminal::UsageError(
                "--trust needs --state DIR, the directory that records accepted versions; without \
                 it an old head could be installed again"
                    .into()
            ));
        }
        Ok(Self { head: head.to_owned(), base: base.path()?, kernel: base.kernel()?, keys, state })
    }

    /// The state directory.
    pub fn state(&self) -> Option<&ModelStore> {
        self.state.as_ref()
    }

    /// Whether signatures are required.
    pub fn is_trusting(&self) -> bool {
        self.keys.is_some()
    }

    /// The files that the model is read from: head and base.
    pub fn paths(&self) -> [&Path; 2] {
        [&self.head, &self.base]
    }

    /// The record of earlier runs. Without keys a damaged record counts as missing: it protects
    /// nothing, and a device should run.
    ///
    /// # Errors
    /// As [`ModelStore::read`], if signatures are required.
    pub fn record(&self) -> Result<Record> {
        match self.state.as_ref().map(ModelStore::read) {
            None => Ok(Record::default()),
            Some(Err(_)) if !self.is_trusting() => Ok(Record::default()),
            Some(record) => record,
        }
    }

    /// Loads the installed model. If its base is that of `running`, the two share it.
    ///
    /// # Errors
    /// The errors of either file; [`Error::WrongBase`] if they do not belong together.
    pub fn load(&self, running: Option<&Model>) -> Result<Model> {
        // The head first: it is small, and its errors should not wait for the base.
        let head = Signable::read(&self.head, vgg_edge::head::MAX_BYTES)?;
        let model = self.join(
            head,
            || Ok(Signable::read(&self.base, vgg_edge::backbone::MAX_BYTES)?),
            running,
        )?;
        let record = self.record()?;
        self.check_versions(&record, &model)?;
        Ok(model)
    }

    /// Loads a stored model. Signatures are verified again, since keys may have been withdrawn;
    /// versions are not checked: it was accepted before.
    ///
    /// # Errors
    /// As [`ModelLoader::load`], and for damaged copies.
    pub fn load_kept(&self, id: ModelId, running: Option<&Model>) -> Result<Model> {
        let state = self.state.as_ref().context("no state directory")?;
        let head = state.read_kept(ModelPart::Head, id.head, vgg_edge::head::MAX_BYTES)?;
        self.join(
            head,
            || state.read_kept(ModelPart::Base, id.base, vgg_edge::backbone::MAX_BYTES),
            running,
        )
    }

    fn join(
        &self,
        head_file: Signable,
        base_file: impl FnOnce() -> Result<Signable>,
        running: Option<&Model>,
    ) -> Result<Model> {
        let verify =
            |file: &Signable| self.keys.as_deref().map(|keys| keys.verify(file)).transpose();
        let head_signed = verify(&head_file)?;
        let head = Head::from_bytes(&head_file.bytes);
        let head =
            head.map_err(|source| Error::HeadFile { path: head_file.path.clone(), source })?;
        let base_file = base_file()?;
        // The running base was verified, but perhaps by keys that are no longer trusted.
        let base_signed = verify(&base_file)?;
        let base = match running {
            Some(model)
                if model.id.base == base_file.digest && model.base.kernel() == self.kernel =>
            {
                model.base.clone()
            }
            _ => Arc::new(Backbone::from_bytes(&base_file.path, &base_file.bytes, self.kernel)?),
        };
        head.check_base(&base)?;
        let id = ModelId { head: head_file.digest, base: base_file.digest };
        Ok(Model { head: Arc::new(head), base, id, head_signed, base_signed, head_file, base_file })
    }

    fn check_versions(&self, record: &Record, model: &Model) -> Result<()> {
        let Some(keys) = &self.keys else { return Ok(()) };
        for (part, signed, file) in model.parts() {
            if let Some(signed) = signed {
                let checked = record.check(part, signed, file.digest, keys.ids());
                checked.map_err(|error| Error::Untrusted {
                    path: file.path.clone(),
                    reason: error.to_string(),
                })?;
            }
        }
        Ok(())
    }

    /// Records the versions of a model, before it classifies anything.
    ///
    /// # Errors
    /// If they cannot be recorded: after a power cut an older head would be accepted.
    pub fn note_versions(&self, model: &Model) -> Result<()> {
        self.update(model, |_| {})
    }

    /// Stores a model that passed its test, with its versions, as the one that runs from now on.
    ///
    /// # Errors
    /// If that cannot be written. Without keys the model may run all the same, but is not available
    /// after a power cut.
    pub fn accept(&self, model: &Model) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        state.keep(ModelPart::Head, &model.head_file)?;
        state.keep(ModelPart::Base, &model.base_file)?;
        self.update(model, |record| record.run(model.id))?;
        state.sweep();
        Ok(())
    }

    fn update(&self, model: &Model, change: impl FnOnce(&mut Record)) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        state.update(|record| {
            // Again, now that no other process can change it.
            self.check_versions(record, model)?;
            for (part, signed, file) in model.parts() {
                if let Some(signed) = signed {
                    record.accept(part, signed, file.digest);
                }
            }
            change(record);
            Ok(())
        })
    }
}

impl Model {
    fn parts(&self) -> [(ModelPart, Option<Signed>, &Signable); 2] {
        [
            (ModelPart::Head, self.head_signed, &self.head_file),
            (ModelPart::Base, self.base_signed, &self.base_file),
        ]
    }

    /// Whether it has the same content and the same signatures.
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |model: &Self| (model.id, model.head_signed, model.base_signed);
        key(self) == key(other)
    }

    /// Frees the files' bytes, which are not needed once they are parsed and stored.
    pub fn forget_bytes(&mut self) {
        self.head_file.bytes = Vec::new();
        self.base_file.bytes = Vec::new();
    }

    /// Creates a classifier.
    ///
    /// # Errors
    /// As [`Classifier::new`].
    pub fn classifier(&self, pool: Option<Arc<rayon::ThreadPool>>) -> Result<Classifier> {
        Ok(Classifier::new(&self.base, self.head.clone(), pool)?)
    }
}

/// Classifies a black input and one of noise. That also pays for the first pass, which the first
/// frame should not.
///
/// # Errors
/// If the scores are not a probability distribution.
pub fn smoke_test(classifier: &mut Classifier) -> Result<()> {
    let length = classifier.head().preprocess.input_len();
    let noise = Fingerprint::of(b"noise").0;
    let noise: Vec<u8> = (0..length)
        .map(|i| noise[i % 32] ^ noise[i / 32 % 32].rotate_left((i / 1024) as u32 % 8))
        .collect();
    for input in [vec![0; length], noise] {
        let scores = classifier.classify_input(&input)?.scores;
        let sum: f32 = scores.iter().sum();
        if !(scores.iter().all(|score| score.is_finite()) && (sum - 1.0).abs() < 0.01) {
            bail!("the head's scores are not finite or do not add up to 1");
        }
    }
    Ok(())
}
