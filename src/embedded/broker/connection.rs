//! Connections: frames in, answers out, in order. A frame that is not understood ends its connection and nothing else.
//! Next: `mod.rs`.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, DescribeClusterRequest, FindCoordinatorRequest, ListGroupsRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::wire::{Error, FRAME_BYTES_MAX, Request};
use super::{Broker, CONNECTIONS_MAX};

/// A pause after `accept` failed, for want of file descriptors: without it the loop would take a whole processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Memory is taken as the bytes arrive, in pieces of at most this.
const PIECE_BYTES: usize = 256 << 10;

/// Accepts connections for ever; those beyond the maximum wait.
pub(super) async fn accept(broker: Arc<Broker>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let broker = broker.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(&broker, stream).await
                        && !matches!(error, Error::Io(_))
                    {
                        tracing::warn!(%error, "closed a connection of the embedded broker");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the embedded broker could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(broker: &Broker, mut stream: TcpStream) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    loop {
        let length = stream.read_i32().await?;
        let length =
            usize::try_from(length).ok().filter(|length| *length <= FRAME_BYTES_MAX).ok_or(Error::Malformed)?;
        let request = Request::read(frame(&mut stream, length).await?)?;
        let answer = broker.answer(&request).await?;
        if broker.has_failed() {
            return Err(Error::Stopped);
        }
        if let Some(answer) = answer {
            stream.write_all(&answer).await?;
        }
    }
}

async fn frame(stream: &mut TcpStream, length: usize) -> Result<Bytes, Error> {
    let mut frame = BytesMut::with_capacity(length.min(PIECE_BYTES));
    while frame.len() < length {
        let piece = (length - frame.len()).min(PIECE_BYTES) as u64;
        frame.reserve(piece as usize);
        if stream.take(piece).read_buf(&mut frame).await? == 0 {
            return Err(Error::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(frame.freeze())
}

impl Broker {
    /// Answers one request; nothing where none is wanted.
    async fn answer(&self, request: &Request) -> Result<Option<Bytes>, Error> {
        let version = request.version;
        let answer = match request.api {
            ApiKey::ApiVersions => request.answer_versions(),
            ApiKey::Produce => match self.produce(&request.body()?, version) {
                Some(answer) => request.answer(&answer),
                None => return Ok(None),
            },
            ApiKey::Fetch => request.answer(&self.fetch(&request.body()?, version).await),
            ApiKey::ListOffsets => request.answer(&self.list_offsets(&request.body()?, version)),
            ApiKey::DeleteRecords => request.answer(&self.delete_records(&request.body()?)),
            ApiKey::Metadata => request.answer(&self.metadata(&request.body()?, version)),
            ApiKey::JoinGroup => request.answer(&self.join_group(request.body()?, &request.client, version).await),
            ApiKey::SyncGroup => request.answer(&self.sync_group(request.body()?).await),
            ApiKey::Heartbeat => request.answer(&self.heartbeat(&request.body()?)),
            ApiKey::LeaveGroup => request.answer(&self.leave_group(&request.body()?, version)),
            ApiKey::OffsetCommit => request.answer(&self.offset_commit(&request.body()?)),
            ApiKey::OffsetFetch => request.answer(&self.offset_fetch(&request.body()?)),
            _ => return self.answer_seldom(request).map(Some),
        };
        answer.map(Some)
    }

    fn answer_seldom(&self, request: &Request) -> Result<Bytes, Error> {
        let version = request.version;
        match request.api {
            ApiKey::InitProducerId => request.answer(&self.init_producer(&request.body()?)),
            ApiKey::AddPartitionsToTxn => request.answer(&self.add_partitions(&request.body()?)),
            ApiKey::AddOffsetsToTxn => request.answer(&self.add_offsets(&request.body()?)),
            ApiKey::TxnOffsetCommit => request.answer(&self.txn_offset_commit(&request.body()?)),
            ApiKey::EndTxn => request.answer(&self.end_txn(&request.body()?)),
            ApiKey::FindCoordinator => {
                request.body::<FindCoordinatorRequest>()?;
                request.answer(&self.find_coordinator())
            }
            ApiKey::DescribeCluster => {
                request.body::<DescribeClusterRequest>()?;
                request.answer(&self.describe_cluster())
            }
            ApiKey::ListGroups => {
                request.body::<ListGroupsRequest>()?;
                request.answer(&self.list_groups())
            }
            ApiKey::DescribeGroups => request.answer(&self.describe_groups(&request.body()?)),
            ApiKey::DeleteGroups => request.answer(&self.delete_groups(&request.body()?)),
            ApiKey::CreateTopics => request.answer(&self.create_topics(&request.body()?)),
            ApiKey::DeleteTopics => request.answer(&self.delete_topics(&request.body()?)),
            ApiKey::CreatePartitions => request.answer(&self.create_partitions(&request.body()?)),
            ApiKey::DescribeConfigs => request.answer(&self.describe_configs(&request.body()?)),
            ApiKey::AlterConfigs => request.answer(&self.alter_configs(&request.body()?)),
            ApiKey::IncrementalAlterConfigs => request.answer(&self.incremental_alter_configs(&request.body()?)),
            api => Err(Error::Unsupported(api as i16, version)),
        }
    }
}
