use std::io;

/// Why a process could not boot, serve or be reached. Messages name the value and the remedy in one line.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Another process listens on the address.
    #[error("address {address} is already in use; stop the process that holds it or choose another with --listen")]
    AddressInUse {
        /// The address as given.
        address: String,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {address}: {source}; give an address of this machine, such as 127.0.0.1:7700")]
    Bind {
        /// The address as given.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The text is not the URL of a server.
    #[error(
        "{url:?} is not a server URL ({reason}); write it as http://host:port or https://host:port, or dns:///host:port to call all addresses of a name in turn"
    )]
    BadUrl {
        /// The text as given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that the process needs cannot be used.
    #[error("{} cannot be used ({reason})", path.display())]
    BadFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificates or keys cannot be used.
    #[error("TLS cannot be set up ({reason}); certificates and keys are PEM files")]
    BadTls {
        /// The file and what is wrong with it.
        reason: String,
    },
    /// Metrics cannot be collected.
    #[error("metrics cannot be collected ({reason}); they can be installed once in a process")]
    Metrics {
        /// What is wrong.
        reason: String,
    },
    /// Spans cannot be sent to the collector.
    #[error(
        "traces cannot be sent to {endpoint:?} ({reason}); give an OTLP collector's gRPC address, such as http://localhost:4317"
    )]
    Traces {
        /// The address as given.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// The log filter does not parse.
    #[error("log level {filter:?} is not valid ({reason}); use error, warn, info, debug, trace or target=level")]
    BadLogFilter {
        /// The text as given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server stopped by itself.
    #[error("server on {address} failed: {source}")]
    Serve {
        /// Where it served.
        address: String,
        /// What went wrong.
        source: tonic::transport::Error,
    },
    /// The descriptors compiled into the binary do not decode.
    #[error("reflection descriptors are damaged ({reason}); rebuild the binary")]
    Descriptors {
        /// What is wrong with them.
        reason: String,
    },
    /// A signal handler could not be installed.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
}
