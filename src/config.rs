//! Options of the operator: flags, each with an environment variable of the same meaning where a Pod needs it.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{api::names, cluster::guard::expected::Installation, telemetry::logs};

/// `backstep run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunOptions {
    /// Kubeconfig file; without it `KUBECONFIG`, then the Pod's service account
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long)]
    pub context: Option<String>,
    /// Namespace of the operator: its Lease and the in-cluster store
    #[arg(long, env = "POD_NAMESPACE", default_value = names::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// Name of the operator's own `ServiceAccount`, as the admission policies name it
    #[arg(long, default_value = names::OPERATOR)]
    pub service_account: String,
    /// Where contents live: `secrets` (in the operator's namespace) or `file:///absolute/path`
    #[arg(long, default_value = "secrets")]
    pub store: String,
    /// Most bytes that the store may hold, e.g. 512Mi; 0 is no limit
    #[arg(long, default_value = "512Mi", value_parser = parse_bytes)]
    pub store_quota: u64,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub admin_address: SocketAddr,
    /// Kinds that one capture lists at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub captures: u16,
    /// How often the repository is tidied and compared with the live Snapshots
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    pub maintenance_interval: Duration,
    /// How often every stored byte is read and compared with its digest
    #[arg(long, default_value = "24h", value_parser = parse_duration)]
    pub verify_interval: Duration,
    /// How long the contents of a Snapshot that vanished while nobody watched are kept
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    pub vanished_grace: Duration,
    /// How long leftovers of an interrupted capture are kept
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    pub orphan_grace: Duration,
    /// Finished `RollbackRequests` that stay in a namespace; older ones are in the repository's records
    #[arg(long, default_value_t = 100, value_parser = history_limit)]
    pub history_limit: usize,
    /// How long after a change of CRDs or admission policies nobody is asked for approval: until every API server knows them
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub guard_settle: Duration,
    /// What happens while mutating webhooks or policies of others see decisions
    #[arg(long, value_enum, default_value = "warn")]
    pub foreign_mutators: ForeignMutators,
    /// User names of the controllers that collect garbage and delete namespaces, as the admission policies name them
    #[arg(long, value_delimiter = ',', default_values = names::SYSTEM_CONTROLLERS)]
    pub system_controllers: Vec<String>,
    /// Whether the admission policy that refuses decisions under plain impersonation must be there
    #[arg(long)]
    pub require_credential_id: bool,
    /// Log format
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: logs::Format,
    /// Log level, or `target=level` directives
    #[arg(long, env = "BACKSTEP_LOG", default_value = "info")]
    pub log_level: String,
    /// Unique name of this process in the leader Lease
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
}

/// What happens while mutators of others see decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ForeignMutators {
    /// They are counted and logged.
    Warn,
    /// The guard is unhealthy: nothing counts and nothing runs.
    Block,
}

impl RunOptions {
    /// Who is who, as the admission policies name them.
    pub fn installation(&self) -> Installation {
        Installation {
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            system_controllers: self.system_controllers.clone(),
            require_credential_id: self.require_credential_id,
        }
    }
}

/// A Kubernetes quantity of bytes: digits with `Ki`, `Mi`, `Gi`, `Ti`, `k`, `M`, `G`, `T` or none.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => {
            return Err(format!(
                "`{text}` is not a size: use digits and Ki, Mi, Gi or Ti, e.g. 512Mi"
            ));
        }
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(|| format!("`{text}` is not a size: use digits and Ki, Mi, Gi or Ti, e.g. 512Mi"))
}

fn history_limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(limit @ 1..=10_000) => Ok(limit),
        _ => Err(format!("`{text}` is not a number from 1 to 10000")),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    crate::api::duration::parse(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_the_units_of_kubernetes_and_refuse_others() {
        assert_eq!(parse_bytes("512Mi"), Ok(512 << 20));
        assert_eq!(parse_bytes("0"), Ok(0));
        assert!(parse_bytes("12MB").is_err());
        assert!(parse_bytes("99999999999Ti").is_err());
    }
}
