//! A head and its base: read once, verified, held against each other, and tried before frames
//! depend on them.

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

/// Whom to believe.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TrustOptions {
    /// A public key (host keygen): heads and bases must be signed by it and newer than those
    /// before; can be given more than once
    #[arg(long, value_name = "KEY.pub")]
    pub trust: Vec<PathBuf>,

    /// Keeps the versions that were seen, and of edge run the last good heads and bases, in this
    /// folder
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

/// Where a pair comes from, and what it must fulfil.
#[derive(Clone)]
pub struct ModelLoader {
    head: PathBuf,
    base: PathBuf,
    kernel: Kernel,
    keys: Option<Arc<TrustedKeys>>,
    state: Option<ModelStore>,
}

/// A head on its base.
pub struct Model {
    /// The head.
    pub head: Arc<Head>,
    /// The base; one that several pairs share is there once.
    pub base: Arc<Backbone>,
    /// What both are.
    pub id: ModelId,
    /// What the signature of the head says, once it is verified.
    pub head_signed: Option<Signed>,
    /// The same of the base.
    pub base_signed: Option<Signed>,
    /// The bytes, until they are kept.
    head_file: Signable,
    base_file: Signable,
}

impl ModelLoader {
    /// Settles the places and reads the keys.
    ///
    /// # Errors
    /// Keys that cannot be read, no base, a kernel that the CPU lacks, keys without a state folder.
    pub fn new(head: &Path, base: &BaseOptions, trust: &TrustOptions) -> Result<Self> {
        let keys = match &trust.trust[..] {
            [] => None,
            paths => Some(Arc::new(TrustedKeys::load(paths)?)),
        };
        let state = trust.state.as_deref().map(ModelStore::open).transpose()?;
        if keys.is_some() && state.is_none() {
            bail!(vgg_edge_cli::terminal::UsageError(
                "--trust wants --state DIR, a folder that remembers which versions were seen; without it an old head could be played \
                 in again"
                    .into()
            ));
        }
        Ok(Self { head: head.to_owned(), base: base.path()?, kernel: base.kernel()?, keys, state })
    }

    /// The state folder.
    pub fn state(&self) -> Option<&ModelStore> {
        self.state.as_ref()
    }

    /// Whether signatures are demanded.
    pub fn is_trusting(&self) -> bool {
        self.keys.is_some()
    }

    /// The files that a pair is read from.
    pub fn paths(&self) -> [&Path; 2] {
        [&self.head, &self.base]
    }

    /// What is known of earlier runs. Without keys a record that is damaged is one that is not
    /// there: nobody can be let in by it, and a device should run.
    ///
    /// # Errors
    /// As [`ModelStore::read`], if signatures are demanded.
    pub fn record(&self) -> Result<Record> {
        match self.state.as_ref().map(ModelStore::read) {
            None => Ok(Record::default()),
            Some(Err(_)) if !self.is_trusting() => Ok(Record::default()),
            Some(record) => record,
        }
    }

    /// Reads the pair as it was put in place. If the base is that of `running`, it is not read into
    /// memory twice.
    ///
    /// # Errors
    /// Everything that is wrong with either; [`Error::WrongBase`] if they do not belong together.
    pub fn load(&self, running: Option<&Model>) -> Result<Model> {
        // The head first: it is small, and its errors should not wait for the base.
        let head = Signable::read(&self.head, vgg_edge::head::MAX_BYTES)?;
        let pair = self.join(
            head,
            || Ok(Signable::read(&self.base, vgg_edge::backbone::MAX_BYTES)?),
            running,
        )?;
        let record = self.record()?;
        self.check_versions(&record, &pair)?;
        Ok(pair)
    }

    /// Reads a pair that was kept. Signatures are verified again, since keys may have been
    /// withdrawn; versions are not: it was accepted.
    ///
    /// # Errors
    /// As [`ModelLoader::load`], and for copies that are damaged.
    pub fn load_kept(&self, id: ModelId, running: Option<&Model>) -> Result<Model> {
        let state = self.state.as_ref().context("there is no state folder")?;
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
        // Those that run were verified, but perhaps by keys that are no longer trusted.
        let base_signed = verify(&base_file)?;
        let base = match running {
            Some(pair) if pair.id.base == base_file.digest && pair.base.kernel() == self.kernel => {
                pair.base.clone()
            }
            _ => Arc::new(Backbone::from_bytes(&base_file.path, &base_file.bytes, self.kernel)?),
        };
        head.check_base(&base)?;
        let id = ModelId { head: head_file.digest, base: base_file.digest };
        Ok(Model { head: Arc::new(head), base, id, head_signed, base_signed, head_file, base_file })
    }

    fn check_versions(&self, record: &Record, pair: &Model) -> Result<()> {
        let Some(keys) = &self.keys else { return Ok(()) };
        for (part, signed, file) in pair.parts() {
            if let Some(signed) = signed {
                let checked = record.check(part, signed, file.digest, keys.ids());
                checked.map_err(|reason| Error::Untrusted { path: file.path.clone(), reason })?;
            }
        }
        Ok(())
    }

    /// Notes the versions of a pair, before anything is said by it.
    ///
    /// # Errors
    /// If they cannot be noted: after a power cut an older head would be let in.
    pub fn note_versions(&self, pair: &Model) -> Result<()> {
        self.update(pair, |_| {})
    }

    /// Keeps a pair that was found good, with its versions, as the one that runs from now on.
    ///
    /// # Errors
    /// If that cannot be written. Without keys the pair may run all the same, but is not there
    /// after a power cut.
    pub fn accept(&self, pair: &Model) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        state.keep(ModelPart::Head, &pair.head_file)?;
        state.keep(ModelPart::Base, &pair.base_file)?;
        self.update(pair, |record| record.run(pair.id))?;
        state.sweep();
        Ok(())
    }

    fn update(&self, pair: &Model, change: impl FnOnce(&mut Record)) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        state.update(|record| {
            // Once more, now that nobody else can change it.
            self.check_versions(record, pair)?;
            for (part, signed, file) in pair.parts() {
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

    /// Whether it is the same, signed as the other is.
    pub fn is_same(&self, other: &Self) -> bool {
        let of = |pair: &Self| (pair.id, pair.head_signed, pair.base_signed);
        of(self) == of(other)
    }

    /// The bytes are of no use any more once they are parsed and kept.
    pub fn forget_bytes(&mut self) {
        self.head_file.bytes = Vec::new();
        self.base_file.bytes = Vec::new();
    }

    /// Something that classifies with them.
    ///
    /// # Errors
    /// As [`Classifier::new`].
    pub fn classifier(&self, pool: Option<Arc<rayon::ThreadPool>>) -> Result<Classifier> {
        Ok(Classifier::new(&self.base, self.head.clone(), pool)?)
    }
}

/// Has a classifier answer for a black input and one of noise. That also pays for the first pass,
/// which the first frame should not.
///
/// # Errors
/// If its scores are no scores.
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
            bail!("the head gives scores that are no numbers or do not add up to 1");
        }
    }
    Ok(())
}
