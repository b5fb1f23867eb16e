//! placeholder
use event_manager::*;
/// x
pub struct ControlServer;
impl MutEventSubscriber for ControlServer { fn process(&mut self, _: Events, _: &mut EventOps) {} fn init(&mut self, _: &mut EventOps) {} }
