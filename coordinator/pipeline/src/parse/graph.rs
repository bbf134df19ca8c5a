//! `needs`: every need is a job, and none needs itself, however far around.

use std::collections::BTreeMap;

use super::names::list;
use super::reader::Reader;
use super::yaml::Place;
use crate::expression::fold_case;
use crate::pipeline::Job;

/// Checks the needs and gives each the spelling of the job's own key.
pub(super) fn check(reader: &mut Reader<'_>, jobs: &mut [Job]) {
    let keys: Vec<String> = jobs.iter().map(|job| job.key.clone()).collect();
    let index: BTreeMap<String, usize> =
        keys.iter().enumerate().map(|(at, key)| (fold_case(key), at)).collect();
    let mut edges: Vec<Vec<usize>> = vec![Vec::new(); jobs.len()];
    for (at, job) in jobs.iter_mut().enumerate() {
        for need in &mut job.needs {
            let place = Place { line: need.line, column: need.column };
            match index.get(&fold_case(&need.key)) {
                Some(&to) => {
                    need.key.clone_from(&keys[to]);
                    edges[at].push(to);
                }
                None => {
                    let hint = reader.did_you_mean(&need.key, &keys).unwrap_or_else(|| {
                        format!("the jobs are {}", list(keys.iter().map(String::as_str)))
                    });
                    let message =
                        format!("job `{}` needs `{}`, which is no job", job.key, need.key);
                    reader.error_with(place, message, hint);
                }
            }
        }
    }
    if let Some(cycle) = cycle(&edges) {
        let job = &jobs[cycle[0]];
        let next = &keys[cycle[1 % cycle.len()]];
        let need = job.needs.iter().find(|need| need.key == *next);
        let place = need.map_or(Place { line: job.line, column: job.column }, |need| Place {
            line: need.line,
            column: need.column,
        });
        let mut names: Vec<&str> = cycle.iter().map(|&at| keys[at].as_str()).collect();
        names.push(names[0]);
        let message = format!("the jobs need each other in a circle: {}", names.join(" → "));
        reader.error_with(place, message, "take one of these `needs` away");
    }
}

/// A cycle, as the nodes on it. Iterative: a chain may have as many jobs as a file has.
fn cycle(edges: &[Vec<usize>]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; edges.len()];
    for start in 0..edges.len() {
        if marks[start] != Mark::New {
            continue;
        }
        // The path from `start`, each with how many of its edges were followed.
        let mut path = vec![(start, 0)];
        marks[start] = Mark::Open;
        while let Some((node, followed)) = path.last_mut() {
            let Some(&next) = edges[*node].get(*followed) else {
                marks[*node] = Mark::Done;
                path.pop();
                continue;
            };
            *followed += 1;
            match marks[next] {
                Mark::Done => (),
                Mark::New => {
                    marks[next] = Mark::Open;
                    path.push((next, 0));
                }
                Mark::Open => {
                    let nodes = path.iter().map(|(node, _)| *node);
                    return Some(nodes.skip_while(|&node| node != next).collect());
                }
            }
        }
    }
    None
}
