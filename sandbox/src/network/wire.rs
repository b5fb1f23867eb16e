//! The wire between an interface and its tap: traffic control, both ways.

use futures::TryStreamExt;
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, LinkUnspec};

use super::{Interface, NetworkError};

/// Parent of filters of an ingress queueing discipline.
const INGRESS: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;

/// Redirects what arrives at one to the other, both ways.
pub async fn connect(netlink: &Handle, interface: &Interface) -> Result<(), NetworkError> {
    let tap = interface.tap();
    let tap_index = index_of(netlink, &tap).await?;
    let fail = |what: String| move |source| NetworkError::Netlink { what, source: Box::new(source) };
    for index in [tap_index, interface.index] {
        let up = netlink.link().set(LinkUnspec::new_with_index(index).up().build()).execute();
        up.await.map_err(fail(format!("take interface {index} up")))?;
    }
    redirect(netlink, interface.index, tap_index)
        .await
        .map_err(fail(format!("redirect {} to {tap}", interface.name)))?;
    redirect(netlink, tap_index, interface.index).await.map_err(fail(format!("redirect {tap} to {}", interface.name)))
}

async fn index_of(netlink: &Handle, name: &str) -> Result<u32, NetworkError> {
    let missing = || NetworkError::NoTap(name.to_owned());
    let mut links = netlink.link().get().match_name(name).execute();
    let link = links.try_next().await.map_err(|_| missing())?.ok_or_else(missing)?;
    Ok(link.header.index)
}

/// A new discipline has no filters: what was there, from an earlier monitor, goes.
async fn redirect(netlink: &Handle, from: u32, to: u32) -> Result<(), rtnetlink::Error> {
    let number = i32::try_from(from).unwrap_or(i32::MAX);
    match netlink.qdisc().add(number).ingress().execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => {
            let mut old = netlink.qdisc().del(number);
            old.message_mut().header.parent = TcHandle::INGRESS;
            old.execute().await?;
            netlink.qdisc().add(number).ingress().execute().await?;
        }
        result => result?,
    }
    netlink.traffic_filter(number).add().parent(INGRESS).protocol(ETH_P_ALL.to_be()).redirect(to)?.execute().await
}
