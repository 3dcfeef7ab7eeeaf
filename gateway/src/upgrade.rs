//! Replacing the running program without refusing a connection. The new process takes the listening sockets from the old one over a
//! Unix socket (`SCM_RIGHTS`), begins to accept and says so; only then the old one drains. Whatever goes wrong before that leaves the
//! old one at its work. Connections wait in the sockets' own queues meanwhile, which are never closed.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use service_runtime::serve::bind;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// How many sockets go over.
const SOCKETS: usize = 3;
/// Comes with the sockets, so that neither side takes another protocol for this one.
const GREETING: &[u8] = b"fechatter gateway 1";
/// Written by the new process when it accepts.
const ACCEPTING: u8 = b'a';
/// How long the old process waits for that; a start reads keys, certificates and ended sessions.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long the new process waits for the sockets.
const ANSWER: Duration = Duration::from_secs(5);

/// The sockets a gateway listens on.
#[derive(Debug)]
pub struct Listeners {
    pub public: TcpListener,
    pub plain: TcpListener,
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds new ones.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            public: bind(config.listen, "listen").await?,
            plain: bind(config.redirect_listen, "redirect_listen").await?,
            admin: bind(config.admin_listen, "admin_listen").await?,
        })
    }

    /// Takes those of the process that offers them at `path`. Where an address is another in the new configuration, a new one is bound.
    pub async fn take(path: &Path, config: &Config) -> anyhow::Result<(Self, Predecessor)> {
        let stream = UnixStream::connect(path)
            .await
            .with_context(|| format!("upgrade_socket: no gateway offers its sockets at {}", path.display()))?;
        let received = tokio::time::timeout(ANSWER, receive(&stream)).await;
        let received = received.context("upgrade_socket: no sockets came")??;
        let mut taken = Vec::with_capacity(SOCKETS);
        let wanted = [config.listen, config.redirect_listen, config.admin_listen];
        for ((fd, wanted), key) in received
            .into_iter()
            .zip(wanted)
            .zip(["listen", "redirect_listen", "admin_listen"])
        {
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true)?;
            let is_same = listener.local_addr()? == wanted;
            taken.push(if is_same {
                TcpListener::from_std(listener)?
            } else {
                bind(wanted, key).await?
            });
        }
        let taken: [TcpListener; SOCKETS] = taken
            .try_into()
            .map_err(|_| anyhow::anyhow!("upgrade_socket: too few sockets came"))?;
        let [public, plain, admin] = taken;
        Ok((Self { public, plain, admin }, Predecessor { stream }))
    }

    /// Copies to [`offer`].
    pub fn copies(&self) -> std::io::Result<Copies> {
        Ok(Copies([
            self.public.as_fd().try_clone_to_owned()?,
            self.plain.as_fd().try_clone_to_owned()?,
            self.admin.as_fd().try_clone_to_owned()?,
        ]))
    }
}

/// Other descriptors of the same sockets.
#[derive(Debug)]
pub struct Copies([OwnedFd; SOCKETS]);

/// The process whose sockets were taken, and which goes on until it is told.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
}

impl Predecessor {
    /// Tells it that connections are accepted here: it begins to drain.
    pub async fn relieve(mut self) -> std::io::Result<()> {
        self.stream.write_all(&[ACCEPTING]).await
    }
}

/// Offers `copies` at `path` until `stop`; cancels `relieved` when another process accepts on them.
pub fn offer(path: &Path, copies: Copies, relieved: CancellationToken, stop: CancellationToken) -> anyhow::Result<()> {
    let socket = bind_socket(path).with_context(|| format!("upgrade_socket: cannot listen at {}", path.display()))?;
    tokio::spawn(async move {
        let relief = async {
            loop {
                match socket.accept().await {
                    Ok((stream, _)) => match hand_over(stream, &copies.0).await {
                        Ok(()) => return,
                        Err(error) => tracing::warn!(%error, "nobody took over, going on"),
                    },
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept at the upgrade socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        // The copies must go with the listeners, or the kernel would go on queueing connections for nobody.
        tokio::select! {
            () = stop.cancelled() => {}
            () = relief => {
                tracing::info!("another process accepts connections on our sockets");
                relieved.cancel();
            }
        }
    });
    Ok(())
}

/// A socket that only we and root may connect to. A file left by a process that is gone, or is being relieved, makes way.
fn bind_socket(path: &Path) -> std::io::Result<UnixListener> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let socket = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&beside, path)?;
    Ok(socket)
}

async fn hand_over(mut stream: UnixStream, copies: &[OwnedFd; SOCKETS]) -> anyhow::Result<()> {
    let (theirs, ours) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if theirs != ours && theirs != 0 {
        bail!("user {theirs} may not take our sockets");
    }
    loop {
        stream.writable().await?;
        match stream.try_io(Interest::WRITABLE, || send(&stream, copies)) {
            Ok(()) => break,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    let accepting = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
    match accepting.context("it took too long to start")? {
        Ok(ACCEPTING) => Ok(()),
        Ok(other) => bail!("it said {other}"),
        Err(_) => bail!("it ended before it accepted connections"),
    }
}

fn send(stream: &UnixStream, copies: &[OwnedFd; SOCKETS]) -> std::io::Result<()> {
    let fds = copies.each_ref().map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(stream, &[IoSlice::new(GREETING)], &mut control, SendFlags::empty())?;
    Ok(())
}

async fn receive(stream: &UnixStream) -> anyhow::Result<Vec<OwnedFd>> {
    let mut greeting = [0; GREETING.len()];
    loop {
        stream.readable().await?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = stream.try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(&mut greeting)];
            Ok(recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?)
        });
        match received {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
            Ok(received) if greeting[..received.bytes] != *GREETING => {
                bail!("upgrade_socket: what answers there is no gateway of a version that offers its sockets");
            }
            Ok(_) => {
                return Ok(control
                    .drain()
                    .filter_map(|message| match message {
                        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                        _ => None,
                    })
                    .flatten()
                    .collect());
            }
        }
    }
}
