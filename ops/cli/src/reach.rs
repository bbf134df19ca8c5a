//! How verbs that only ask reach a farm: the coordinator that is named, the `stead run`
//! that goes on here, or the state that one left.

use std::path::{Path, PathBuf};

use steading_cas::Blobs;
use steading_model::{JobId, RunId};
use steading_proto::v1;

use crate::args::Coordinated;
use crate::connect::{Endpoint, FIRST_ANSWER_MAX, failure};
use crate::context;
use crate::coordinators::Coordinators;
use crate::exit::Failure;
use crate::local::{self, Farm};

/// A farm that can be asked.
#[derive(Debug)]
pub struct Reach {
    pub coordinators: Coordinators,
    pub blobs: Blobs,
    /// What a command for people has to say to reach it again: ` --coordinator E`.
    pub arguments: String,
    farm: Option<Farm>,
}

impl Reach {
    /// Reaches the coordinator that is named, or else the state of `stead run`.
    ///
    /// # Errors
    ///
    /// [`Failure`] where nothing is named and there is no state, or it cannot be used.
    pub async fn new(coordinated: &Coordinated) -> Result<Self, Failure> {
        // A state that is named is meant, whatever farm the environment names.
        let named = coordinated.data_dir.is_none() || coordinated.farm.is_named();
        if let Some(farm) = named.then(|| context::find(&coordinated.farm)).transpose()?.flatten() {
            return Ok(Self::remote(farm.coordinators, farm.arguments));
        }
        let (state, arguments) = match &coordinated.data_dir {
            Some(dir) => {
                let quoted = crate::follow::quoted(&dir.to_string_lossy());
                (dir.clone(), format!(" --data-dir {quoted}"))
            }
            None => {
                let here = std::env::current_dir().map_err(anyhow::Error::from)?;
                let state = state_above(&here).ok_or_else(|| {
                    Failure::usage(format!(
                        "no {} in `{}` or above it\n  hint: name the farm with --coordinator \
                         or STEADING_COORDINATOR, or the state of `stead run` with --data-dir",
                        local::STATE,
                        here.display()
                    ))
                })?;
                (state, String::new())
            }
        };
        if !state.join("coordinator").is_dir() {
            return Err(Failure::usage(format!(
                "`{}` is no state of `stead run`",
                state.display()
            )));
        }
        let socket = local::socket(&state);
        if tokio::net::UnixStream::connect(&socket).await.is_ok() {
            let coordinators = Coordinators::new(vec![Endpoint::Unix(socket)], None);
            return Ok(Self::remote(coordinators, arguments));
        }
        let farm = Farm::start(&state).await?;
        let (coordinators, blobs) = (Coordinators::here(farm.channel()), farm.blobs());
        Ok(Self { coordinators, blobs, arguments, farm: Some(farm) })
    }

    fn remote(coordinators: Coordinators, arguments: String) -> Self {
        let blobs = coordinators.blobs();
        Self { coordinators, blobs, arguments, farm: None }
    }

    /// The run, with all its jobs.
    ///
    /// # Errors
    ///
    /// [`Failure`] where there is none, or no coordinator answers.
    pub async fn run(&self, id: RunId) -> Result<v1::Run, Failure> {
        let request = v1::GetRunRequest { run_id: id.counter() };
        let run = self
            .coordinators
            .call(FIRST_ANSWER_MAX, |mut client| async move { client.get_run(request).await });
        run.await.map_err(|status| match status.code() {
            tonic::Code::NotFound => Failure::usage(format!(
                "{id} is not known here\n  hint: `stead runs` lists the runs"
            )),
            _ => failure("read the run", status),
        })
    }

    /// Stops what was started to be asked.
    ///
    /// # Errors
    ///
    /// [`Failure::Farm`] where it cannot stop well.
    pub async fn stop(self) -> Result<(), Failure> {
        match self.farm {
            Some(farm) => Ok(farm.stop().await?),
            None => Ok(()),
        }
    }
}

/// Reads `run-7` or `7`.
///
/// # Errors
///
/// [`Failure::Usage`] for any other text.
pub fn run_id(text: &str) -> Result<RunId, Failure> {
    text.parse().map_err(|_| {
        Failure::usage(format!(
            "`{text}` is no run\n  hint: write run-7, or 7; `stead runs` lists them"
        ))
    })
}

/// The jobs that `named` means: one by its id, all of a key, or all of a name.
///
/// # Errors
///
/// [`Failure::Usage`] where none is meant; it lists those that there are.
pub fn jobs<'a>(run: &'a v1::Run, named: Option<&str>) -> Result<Vec<&'a v1::Job>, Failure> {
    let Some(named) = named else { return Ok(run.jobs.iter().collect()) };
    let by_id = named.starts_with("job-").then(|| named.parse::<JobId>().ok()).flatten();
    let by = |meant: &dyn Fn(&v1::Job) -> bool| -> Vec<&'a v1::Job> {
        run.jobs.iter().filter(|job| meant(job)).collect()
    };
    let candidates = [
        by(&|job| by_id.is_some_and(|id| id.counter() == job.job_id)),
        by(&|job| job.name == named),
        by(&|job| job.key == named),
    ];
    candidates.into_iter().find(|found| !found.is_empty()).ok_or_else(|| {
        let names: Vec<_> = run.jobs.iter().map(|job| crate::text::clean(&job.name)).collect();
        Failure::usage(format!("the run has no job `{named}`; it has: {}", names.join(", ")))
    })
}

fn state_above(here: &Path) -> Option<PathBuf> {
    here.ancestors().map(|folder| folder.join(local::STATE)).find(|state| state.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_meant_by_id_name_or_key() {
        check(Some("job-2"), "2");
        check(Some("test (a)"), "2");
        check(Some("test"), "2 3");
        check(Some("build"), "1");
        check(None, "1 2 3");
        check(Some("deploy"), "the run has no job `deploy`; it has: build, test (a), test (b)");
        check(Some("job-9"), "the run has no job `job-9`; it has: build, test (a), test (b)");
    }

    fn check(named: Option<&str>, want: &str) {
        let job = |job_id, key: &str, name: &str| v1::Job {
            job_id,
            key: key.to_owned(),
            name: name.to_owned(),
            ..Default::default()
        };
        let run = v1::Run {
            jobs: vec![
                job(1, "build", "build"),
                job(2, "test", "test (a)"),
                job(3, "test", "test (b)"),
            ],
            ..Default::default()
        };
        let got = match jobs(&run, named) {
            Ok(jobs) => {
                let ids: Vec<String> = jobs.iter().map(|job| job.job_id.to_string()).collect();
                ids.join(" ")
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want);
    }
}
