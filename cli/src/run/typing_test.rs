use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::super::frames::{Frame, read_frame};
use super::*;

/// A keyboard, and what the keeper receives. The container takes nothing unless a test says so.
struct Desk {
    typing: Arc<Typing>,
    keyboard: UnixStream,
    keeper: UnixStream,
    end: thread::JoinHandle<End>,
}

fn desk() -> Desk {
    let (keyboard, input) = UnixStream::pair().unwrap();
    let (ours, keeper) = UnixStream::pair().unwrap();
    let typing = Arc::<Typing>::default();
    let reader = Arc::clone(&typing);
    thread::spawn(move || reader.read_keys(input.as_fd()));
    let sender = Arc::clone(&typing);
    let end = thread::spawn(move || sender.send_to(&FrameWriter::new(ours)));
    Desk { typing, keyboard, keeper, end }
}

impl Desk {
    /// Types on another thread: not all of it may be read.
    fn types(&self, bytes: Vec<u8>) -> thread::JoinHandle<()> {
        let mut keyboard = self.keyboard.try_clone().unwrap();
        thread::spawn(move || keyboard.write_all(&bytes).unwrap())
    }

    fn receive(&mut self) -> Frame<ToKeeper> {
        read_frame(&mut self.keeper).unwrap()
    }

    /// What was typed until a message comes, and the message; `takes` says whether the container takes it.
    fn receive_typed(&mut self, takes: bool) -> (Vec<u8>, ToKeeper) {
        let mut typed = Vec::new();
        loop {
            match self.receive() {
                Frame::Bytes(bytes) => {
                    typed.extend_from_slice(&bytes);
                    assert!(!takes || bytes.len() <= CREDIT_BYTES);
                    if takes {
                        self.typing.taken(bytes.len());
                    }
                }
                Frame::Message(message) => return (typed, message),
            }
        }
    }
}

/// No two neighbourhoods of it are the same, and no detach keys are in it.
fn text(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(|number| format!("{number}\n").into_bytes()).take(length).collect()
}

#[test]
fn no_more_is_under_way_than_there_is_credit_for() {
    let mut state = State::default();
    let text = text(3 * CREDIT_BYTES);
    state.add(&text, None);
    assert_eq!(state.next(), Some(Step::Send(text[..CREDIT_BYTES].to_vec())));
    assert_eq!(state.next(), None);
    state.taken(3);
    assert_eq!(state.next(), Some(Step::Send(text[CREDIT_BYTES..CREDIT_BYTES + 3].to_vec())));
    assert_eq!(state.next(), None);
    state.taken(CREDIT_BYTES);
    assert_eq!(state.next(), Some(Step::Send(text[CREDIT_BYTES + 3..2 * CREDIT_BYTES + 3].to_vec())));
    // A keeper that says more than was sent gives no more credit than there is.
    state.taken(usize::MAX);
    assert_eq!(state.next(), Some(Step::Send(text[2 * CREDIT_BYTES + 3..].to_vec())));
    assert_eq!(state.next(), None);
}

#[test]
fn the_end_comes_after_all_that_was_typed() {
    let mut state = State::default();
    state.add(&text(CREDIT_BYTES + 1), Some(End::Over));
    assert!(matches!(state.next(), Some(Step::Send(bytes)) if bytes.len() == CREDIT_BYTES));
    assert_eq!(state.next(), None);
    state.taken(1);
    assert!(matches!(state.next(), Some(Step::Send(bytes)) if bytes.len() == 1));
    assert_eq!(state.next(), Some(Step::End(End::Over)));
}

#[test]
fn the_terminal_is_read_only_while_there_is_room() {
    let mut state = State::default();
    state.add(&text(BUFFER_BYTES - PIECE_BYTES - 1), None);
    assert!(state.has_room());
    state.add(b"x", None);
    assert!(!state.has_room());
    assert!(state.next().is_some());
    assert!(state.has_room());
}

#[test]
fn the_detach_keys_get_through_what_nobody_takes_and_nothing_is_lost() {
    let mut desk = desk();
    let sent = text(BUFFER_BYTES / 2);
    desk.types([&sent, &b"\x10\x11"[..]].concat());
    let (typed, message) = desk.receive_typed(false);
    assert!(typed == sent);
    assert!(matches!(message, ToKeeper::Detach), "{message:?}");
    assert_eq!(desk.end.join().unwrap(), End::Detached);
}

#[test]
fn a_full_buffer_holds_up_whoever_types_and_loses_nothing() {
    let mut desk = desk();
    let sent = text(4 * BUFFER_BYTES);
    let typist = desk.types(sent.clone());
    // Credit is used up, then the buffer.
    let mut typed = Vec::new();
    while typed.len() < CREDIT_BYTES {
        let Frame::Bytes(bytes) = desk.receive() else { panic!("a message") };
        typed.extend_from_slice(&bytes);
    }
    let mut state = desk.typing.lock();
    while state.has_room() {
        state = desk.typing.wait(state);
    }
    assert!(state.waiting.len() <= BUFFER_BYTES);
    drop(state);
    assert!(!typist.is_finished());
    desk.typing.taken(CREDIT_BYTES);
    let keyboard = desk.keyboard.try_clone().unwrap();
    let closer = thread::spawn(move || {
        typist.join().unwrap();
        keyboard.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let (rest, message) = desk.receive_typed(true);
    closer.join().unwrap();
    typed.extend_from_slice(&rest);
    assert!(typed == sent);
    assert!(matches!(message, ToKeeper::InputEnd), "{message:?}");
    assert_eq!(desk.end.join().unwrap(), End::Over);
}

#[test]
fn typing_ends_with_the_keeper() {
    let Desk { keeper, mut keyboard, end, .. } = desk();
    drop(keeper);
    keyboard.write_all(b"x").unwrap();
    assert_eq!(end.join().unwrap(), End::Over);
    // The reader has gone too, at the latest after one more key.
    let _ = keyboard.write_all(b"y");
    let _ = keyboard.read(&mut [0]);
}
