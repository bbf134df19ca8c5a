//! The pipeline language: parse, expressions, plan. Pure.

pub mod job;
