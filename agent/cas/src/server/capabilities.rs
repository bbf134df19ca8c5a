//! What this server can do.

use bazel_remote_apis::build::bazel::semver::SemVer;
use steading_model::limits::BATCH_BYTES_MAX;
use steading_proto::reapi;
use steading_proto::reapi::capabilities_server::Capabilities;
use tonic::{Request, Response, Status};

/// The `Capabilities` service.
#[derive(Clone, Copy, Debug, Default)]
pub struct CapabilitiesService;

#[tonic::async_trait]
impl Capabilities for CapabilitiesService {
    async fn get_capabilities(
        &self,
        _request: Request<reapi::GetCapabilitiesRequest>,
    ) -> Result<Response<reapi::ServerCapabilities>, Status> {
        let functions = vec![
            reapi::digest_function::Value::Sha256 as i32,
            reapi::digest_function::Value::Blake3 as i32,
        ];
        let any_priority = reapi::PriorityCapabilities {
            priorities: vec![reapi::priority_capabilities::PriorityRange {
                min_priority: i32::MIN,
                max_priority: i32::MAX,
            }],
        };
        let cache = reapi::CacheCapabilities {
            digest_functions: functions,
            action_cache_update_capabilities: Some(reapi::ActionCacheUpdateCapabilities {
                update_enabled: true,
            }),
            cache_priority_capabilities: Some(any_priority),
            max_batch_total_size_bytes: BATCH_BYTES_MAX as i64,
            symlink_absolute_path_strategy: reapi::symlink_absolute_path_strategy::Value::Allowed
                as i32,
            supported_compressors: vec![reapi::compressor::Value::Zstd as i32],
            ..<_>::default()
        };
        let version = |minor| Some(SemVer { major: 2, minor, ..<_>::default() });
        Ok(Response::new(reapi::ServerCapabilities {
            cache_capabilities: Some(cache),
            low_api_version: version(0),
            high_api_version: version(3),
            ..<_>::default()
        }))
    }
}
