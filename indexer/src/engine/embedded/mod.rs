//! The embedded engine: tantivy in a folder of this process, nothing to install.
//!
//! The folder holds generations `generation-N`, one index each, and the file `CURRENT`, which names the serving one and
//! is replaced atomically. A commit is durable before [`SearchEngine::apply`] returns; a killed process finds its last
//! commit. An unreadable index is moved aside (`….damaged-…`) and an empty one takes its place, marked incomplete. When
//! the disk gets full nothing is written any more; searching goes on.

mod collect;
mod columns;
mod compile;
mod counts;
mod generation;
mod room;
pub mod schema;
mod tokenizer;
mod writing;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use tantivy::TantivyError;
use tokio::sync::Semaphore;

pub use compile::{ONE_TYPO_CHARS, TWO_TYPOS_CHARS, typos_allowed};
pub use generation::OpenError;

use fechatter_core::MessageId;

use self::generation::{Generation, Marks, WriterOptions};
use self::writing::{writing, yielding};
use super::{Applied, Change, EngineError, EngineQuery, Found, SearchEngine, Stored, StreamPosition};

/// Name of the file that names the serving generation.
const CURRENT: &str = "CURRENT";
/// How long a search waits for its turn before the engine counts as overloaded.
const TURN_WAIT: Duration = Duration::from_secs(2);

/// How the embedded engine is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its folder; made when absent.
    pub folder: PathBuf,
    /// Memory of the indexing buffer, in bytes, 15,000,000 at least.
    pub writer_memory: usize,
    /// Searches that run at the same time; others wait.
    pub concurrent_searches: usize,
    /// Free space of the folder's file system, in bytes, below which nothing is written; a merge needs some to end well.
    pub min_free: u64,
}

#[derive(Debug)]
struct Generations {
    serving: Arc<Generation>,
    building: Option<Arc<Generation>>,
}

/// The embedded engine.
#[derive(Debug)]
pub struct EmbeddedEngine {
    options: Options,
    generations: RwLock<Generations>,
    /// Held while changes are applied or generations change places, so that no change misses one of them.
    changing: tokio::sync::Mutex<()>,
    turns: Arc<Semaphore>,
}

impl EmbeddedEngine {
    /// Opens the folder, or begins an empty index in it.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        yielding(|| Self::open_here(options))?
    }

    fn open_here(options: Options) -> Result<Self, OpenError> {
        std::fs::create_dir_all(&options.folder)?;
        let writer = WriterOptions {
            memory: options.writer_memory,
        };
        let serving = match read_current(&options.folder)? {
            Some(name) => open_or_set_aside(&options.folder, &name, writer)?,
            None => None,
        };
        let serving = match serving {
            Some(generation) => generation,
            None => begin(&options.folder, writer)?,
        };
        let building = open_interrupted(&options.folder, serving.folder(), writer);
        Ok(Self {
            turns: Arc::new(Semaphore::new(options.concurrent_searches)),
            generations: RwLock::new(Generations {
                serving: Arc::new(serving),
                building: building.map(Arc::new),
            }),
            changing: tokio::sync::Mutex::new(()),
            options,
        })
    }

    fn serving(&self) -> Arc<Generation> {
        Arc::clone(&self.generations.read().unwrap_or_else(PoisonError::into_inner).serving)
    }

    fn building(&self) -> Option<Arc<Generation>> {
        self.generations
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .building
            .clone()
    }

    fn building_or_error(&self) -> Result<Arc<Generation>, EngineError> {
        self.building()
            .ok_or_else(|| EngineError::Rejected("no rebuild is under way".to_owned()))
    }

    fn change(&self, with: impl FnOnce(&mut Generations)) {
        with(&mut self.generations.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Runs disk work off the async threads; a panic in it (tantivy meets damaged data so) is an error.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(EngineError::Failed(format!("index task: {error}"))))
}

fn engine_error(error: &TantivyError) -> EngineError {
    let text = error.to_string();
    match error {
        TantivyError::IoError(error) if room::is_full(error) => EngineError::Full(text),
        TantivyError::IoError(_)
        | TantivyError::OpenDirectoryError(_)
        | TantivyError::OpenReadError(_)
        | TantivyError::OpenWriteError(_)
        | TantivyError::LockFailure(..) => EngineError::Unavailable(text),
        _ => EngineError::Failed(text),
    }
}

fn io_error(error: &std::io::Error) -> EngineError {
    let text = format!("index folder: {error}");
    if room::is_full(error) {
        EngineError::Full(text)
    } else {
        EngineError::Unavailable(text)
    }
}

#[async_trait]
impl SearchEngine for EmbeddedEngine {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn apply(&self, changes: Vec<Change>, position: Option<StreamPosition>) -> Result<Applied, EngineError> {
        let _changing = self.changing.lock().await;
        let (serving, building) = (self.serving(), self.building());
        let (folder, min_free) = (self.options.folder.clone(), self.options.min_free);
        writing(move || {
            room::require(&folder, min_free)?;
            let reach = |marks: &mut Marks| marks.position = StreamPosition::reached(marks.position, position);
            if let Some(building) = building {
                building.apply(&changes, reach)?;
            }
            serving.apply(&changes, reach)
        })
        .await
    }

    async fn search(&self, query: EngineQuery) -> Result<Found, EngineError> {
        let turn = tokio::time::timeout(TURN_WAIT, Arc::clone(&self.turns).acquire_owned())
            .await
            .map_err(|_| EngineError::Unavailable("too many searches at once".to_owned()))?
            .map_err(|error| EngineError::Unavailable(error.to_string()))?;
        let generation = self.serving();
        blocking(move || {
            let _turn = turn;
            let snapshot = generation.snapshot();
            compile::compile(&snapshot.searcher, generation.fields(), &query)
                .and_then(|compiled| {
                    let matches = collect::Matches::new(&query, snapshot.columns);
                    snapshot.searcher.search(&compiled, &matches)
                })
                .map_err(|error| engine_error(&error))
        })
        .await
    }

    async fn check(&self) -> Result<String, EngineError> {
        let generation = self.serving();
        blocking(move || {
            let documents = generation.documents().map_err(|error| engine_error(&error))?;
            let note = if generation.marks().complete {
                ""
            } else {
                ", incomplete"
            };
            Ok(format!("embedded, {documents} messages{note}"))
        })
        .await
    }

    async fn writable(&self) -> Result<(), EngineError> {
        let (folder, min_free) = (self.options.folder.clone(), self.options.min_free);
        blocking(move || {
            room::require(&folder, min_free)?;
            room::probe(&folder).map_err(|error| io_error(&error))
        })
        .await
    }

    async fn documents(&self) -> Result<u64, EngineError> {
        let generation = self.serving();
        blocking(move || generation.documents().map_err(|error| engine_error(&error))).await
    }

    async fn stored(&self, after: MessageId, until: MessageId) -> Result<Vec<Stored>, EngineError> {
        let generation = self.serving();
        blocking(move || generation.stored(after, until).map_err(|error| engine_error(&error))).await
    }

    async fn position(&self) -> Result<Option<StreamPosition>, EngineError> {
        let generation = self.serving();
        blocking(move || Ok(generation.marks().position)).await
    }

    async fn incomplete(&self) -> Result<Option<String>, EngineError> {
        let (serving, interrupted) = (self.serving(), self.building().is_some());
        blocking(move || {
            Ok(if !serving.marks().complete {
                Some("the index is new or was damaged".to_owned())
            } else if interrupted {
                Some("a rebuild was interrupted".to_owned())
            } else {
                None
            })
        })
        .await
    }

    async fn rebuild_begin(&self) -> Result<i64, EngineError> {
        let _changing = self.changing.lock().await;
        if let Some(building) = self.building() {
            return Ok(building.marks().cursor);
        }
        let folder = self.options.folder.clone();
        let writer = WriterOptions {
            memory: self.options.writer_memory,
        };
        let min_free = self.options.min_free;
        let building = writing(move || {
            room::require(&folder, min_free)?;
            let next = next_name(&folder).map_err(|error| io_error(&error))?;
            Generation::create(folder.join(next), writer).map_err(|error| EngineError::Unavailable(error.to_string()))
        })
        .await?;
        self.change(|generations| generations.building = Some(Arc::new(building)));
        Ok(0)
    }

    async fn rebuild_load(&self, changes: Vec<Change>, cursor: i64) -> Result<(), EngineError> {
        let building = self.building_or_error()?;
        let (folder, min_free) = (self.options.folder.clone(), self.options.min_free);
        writing(move || {
            room::require(&folder, min_free)?;
            building.apply(&changes, |marks| marks.cursor = cursor).map(drop)
        })
        .await
    }

    async fn rebuild_finish(&self) -> Result<(), EngineError> {
        let _changing = self.changing.lock().await;
        let building = self.building_or_error()?;
        let old = self.serving();
        let (folder, fresh) = (self.options.folder.clone(), Arc::clone(&building));
        writing(move || {
            fresh.apply(&[], |marks| {
                marks.complete = true;
                // Live changes went to both, so neither is behind the other.
                marks.position = marks.position.or(old.marks().position);
            })?;
            write_current(&folder, fresh.folder()).map_err(|error| io_error(&error))
        })
        .await?;
        let old = self.serving();
        self.change(|generations| {
            generations.serving = building;
            generations.building = None;
        });
        // Searches that began before still hold the old files open; removing them only takes their names.
        remove(old.folder());
        Ok(())
    }

    async fn rebuild_abort(&self) -> Result<(), EngineError> {
        let _changing = self.changing.lock().await;
        let Some(building) = self.building() else {
            return Ok(());
        };
        self.change(|generations| generations.building = None);
        remove(building.folder());
        Ok(())
    }
}

fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder) {
        tracing::warn!(%error, folder = %folder.display(), "cannot remove an old index");
    }
}

fn read_current(folder: &Path) -> std::io::Result<Option<String>> {
    match std::fs::read_to_string(folder.join(CURRENT)) {
        Ok(name) if is_generation(name.trim()) => Ok(Some(name.trim().to_owned())),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_current(folder: &Path, generation: &Path) -> std::io::Result<()> {
    let name = generation
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let draft = folder.join("CURRENT.new");
    let file = {
        use std::io::Write;
        let mut file = std::fs::File::create(&draft)?;
        file.write_all(name.as_bytes())?;
        file
    };
    file.sync_all()?;
    std::fs::rename(&draft, folder.join(CURRENT))?;
    std::fs::File::open(folder)?.sync_all()
}

fn is_generation(name: &str) -> bool {
    generation_number(name).is_some()
}

fn generation_number(name: &str) -> Option<u64> {
    name.strip_prefix("generation-")?.parse().ok()
}

fn generation_names(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_generation(name))
        .collect();
    names.sort_unstable_by_key(|name| generation_number(name));
    Ok(names)
}

fn next_name(folder: &Path) -> std::io::Result<String> {
    let last = generation_names(folder)?
        .last()
        .and_then(|name| generation_number(name))
        .unwrap_or(0);
    Ok(format!("generation-{}", last + 1))
}

fn begin(folder: &Path, writer: WriterOptions) -> Result<Generation, OpenError> {
    let generation = Generation::create(folder.join(next_name(folder)?), writer)?;
    write_current(folder, generation.folder())?;
    Ok(generation)
}

/// Opens a generation; an unreadable one is moved aside for a person to look at.
fn open_or_set_aside(folder: &Path, name: &str, writer: WriterOptions) -> Result<Option<Generation>, OpenError> {
    let path = folder.join(name);
    match Generation::open(path.clone(), writer) {
        Ok(generation) => Ok(Some(generation)),
        Err(OpenError::Unreadable(reason)) => {
            let stamp = time::OffsetDateTime::now_utc().unix_timestamp();
            let aside = folder.join(format!("{name}.damaged-{stamp}"));
            tracing::error!(
                reason,
                moved_to = %aside.display(),
                "the search index cannot be read; it is moved aside and will be rebuilt from PostgreSQL"
            );
            if path.exists() {
                std::fs::rename(&path, &aside)?;
            }
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A newer generation beside the serving one was being built when the process ended: building goes on. Older ones and
/// unreadable ones are leftovers.
fn open_interrupted(folder: &Path, serving: &Path, writer: WriterOptions) -> Option<Generation> {
    let serving_name = serving.file_name()?.to_string_lossy().into_owned();
    let mut building = None;
    for name in generation_names(folder).ok()?.into_iter().rev() {
        if name == serving_name {
            continue;
        }
        if building.is_none() && generation_number(&name) > generation_number(&serving_name) {
            building = Generation::open(folder.join(&name), writer).ok();
            if building.is_some() {
                continue;
            }
        }
        remove(&folder.join(&name));
    }
    building
}
