//! Clients: from a kubeconfig, or from inside the cluster.

use std::{path::Path, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::error::{Error, Result};

/// Configuration of a client: the kubeconfig at `path`, else `$KUBECONFIG`, else the Pod's own service account.
pub async fn config(path: Option<&Path>, context: Option<&str>) -> Result<Config> {
    let options = KubeConfigOptions {
        context: context.map(ToOwned::to_owned),
        ..KubeConfigOptions::default()
    };
    let mut config = match path {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|e| Error::Config(e.to_string()))?
        }
        None if context.is_some() => Config::from_kubeconfig(&options)
            .await
            .map_err(|e| Error::Config(e.to_string()))?,
        None => Config::infer().await.map_err(|e| Error::Config(e.to_string()))?,
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    // Retries are bounded in `call`; the client's own can hold a call for minutes.
    config.default_retry = false;
    Ok(config)
}

/// A client of `config`.
pub fn client(config: Config) -> Result<Client> {
    Client::try_from(config).map_err(|e| Error::Config(e.to_string()))
}
