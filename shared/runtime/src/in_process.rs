use std::io;

use futures::Stream;
use futures::stream::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::{ClientOptions, Endpoint};

/// Bytes in flight in one direction of a pipe before the writer waits.
const PIPE_BYTES: usize = 256 << 10;
/// Connections that may wait for the server to accept them.
const BACKLOG: usize = 64;
/// What errors call the address of an in-process server.
const ADDRESS: &str = "this process";

/// A transport over memory: the server side takes [`PipeListener`], clients dial with [`Dialer`].
///
/// The dialer works before the server runs, so that services of one process can be given clients of each other:
/// calls wait until [`crate::ServerBuilder::serve_in_process`] accepts.
pub fn in_process() -> (Dialer, PipeListener) {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    (Dialer { sender }, PipeListener { receiver })
}

/// Opens connections to the services of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dialer {
    sender: mpsc::Sender<DuplexStream>,
}

impl Dialer {
    /// A client side with a connection of its own, opened at its first call.
    ///
    /// Give each client its own endpoint: calls of one connection share its flow-control window.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::from_channel(ADDRESS, self.channel())
    }

    fn channel(&self) -> Channel {
        let sender = self.sender.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let sender = sender.clone();
            async move {
                let (client, server) = tokio::io::duplex(PIPE_BYTES);
                let closed = |_| io::Error::new(io::ErrorKind::ConnectionRefused, "its server has stopped");
                sender.send(server).await.map_err(closed)?;
                Ok::<_, io::Error>(TokioIo::new(client))
            }
        });
        let options = ClientOptions::default();
        options
            .windows(tonic::transport::Endpoint::from_static("http://in-process"))
            .connect_with_connector_lazy(connector)
    }
}

/// Accepts the connections of one [`Dialer`] and its clones.
#[derive(Debug)]
pub struct PipeListener {
    receiver: mpsc::Receiver<DuplexStream>,
}

impl PipeListener {
    pub(crate) fn incoming(self) -> impl Stream<Item = io::Result<DuplexStream>> {
        ReceiverStream::new(self.receiver).map(Ok)
    }
}
