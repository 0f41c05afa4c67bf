//! Answers on their way to the client: whole, or in server-sent events as they come.

use crate::openai::write::{Told, Total, Writer};
use crate::openai::{Tools, Wanted};
use crate::{Fault, Piece, Reply, Service};
use hyper::body::Bytes;
use serde_json::Value as Json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use vela_fusion::PictureAttention;
use vela_llm::engine::Usage;
use vela_llm::generate::StopStrings;

/// Held by all that works for one question.
pub type Slot = Arc<OwnedSemaphorePermit>;

/// The whole answer.
pub async fn whole(
    service: &Arc<Service>,
    wanted: &Wanted,
    replies: Vec<Reply>,
    slot: &Slot,
) -> Result<Json, Fault> {
    let (mut told, mut total) = (Vec::with_capacity(replies.len()), Total::default());
    for mut reply in replies {
        let (mut one, usage) = tell(service, wanted.tools.as_ref(), &mut reply).await?;
        one.attention = look(service, &mut reply, slot).await?;
        total.add(&usage, reply.index == 0);
        told.push(one);
    }
    let writer = Writer::new(wanted.kind, service, &wanted.model, false);
    Ok(writer.whole(&told, &total, service.model().tokenizer()))
}

/// What an answer looked at, if that was asked for; on a thread that may work.
async fn look(
    service: &Arc<Service>,
    reply: &mut Reply,
    slot: &Slot,
) -> Result<Option<Vec<PictureAttention>>, Fault> {
    let Some(reading) = reply.take_reading() else { return Ok(None) };
    let (service, slot) = (service.clone(), slot.clone());
    let work = tokio::task::spawn_blocking(move || {
        let found = service.attention(&reading);
        drop(slot);
        found
    });
    work.await.map_err(|_| Fault::internal("working out the attention panicked"))?.map(Some)
}

async fn tell(service: &Service, tools: Option<&Tools>, reply: &mut Reply) -> Result<(Told, Usage), Fault> {
    let mut told = Told::default();
    while let Some(piece) = reply.next(service).await {
        match piece? {
            Piece::Token { text, choice } => {
                told.text += &text;
                if choice.logprob.is_some() {
                    told.tokens.get_or_insert_default().push(choice);
                }
            }
            Piece::End { text, finish, usage } => {
                told.text += &text;
                told.finish = finish.word();
                if let Some(tools) = tools {
                    (told.text, told.calls) = tools.calls(&told.text);
                    if !told.calls.is_empty() {
                        told.finish = "tool_calls";
                    }
                }
                return Ok((told, usage));
            }
        }
    }
    Err(Fault::internal("the answer broke off"))
}

/// The answer as events. It ends, and everything behind it, when the receiver is dropped.
pub fn stream(
    service: Arc<Service>,
    wanted: Wanted,
    replies: Vec<Reply>,
    secs: u64,
    slot: Slot,
) -> mpsc::Receiver<Bytes> {
    let (sender, events) = mpsc::channel(32);
    tokio::spawn(async move {
        let telling = tell_all(service, wanted, replies, &sender, &slot);
        let outcome = tokio::time::timeout(Duration::from_secs(secs), telling).await;
        let last = match outcome {
            Ok(Ok(())) => "data: [DONE]\n\n".into(),
            Ok(Err(fault)) => event(&fault.json()),
            Err(_) => event(&Fault::too_slow(secs).json()),
        };
        // Nobody may be there to hear it.
        let _ = sender.send(last).await;
        drop(slot);
    });
    events
}

fn event(json: &Json) -> Bytes {
    format!("data: {json}\n\n").into()
}

/// All choices side by side, then the usage.
async fn tell_all(
    service: Arc<Service>,
    wanted: Wanted,
    replies: Vec<Reply>,
    sender: &mpsc::Sender<Bytes>,
    slot: &Slot,
) -> Result<(), Fault> {
    let writer = Arc::new(Writer::new(wanted.kind, &service, &wanted.model, wanted.include_usage));
    let tools = Arc::new(wanted.tools);
    let mut all = JoinSet::new();
    for (index, reply) in replies.into_iter().enumerate() {
        let line = Line {
            service: service.clone(),
            writer: writer.clone(),
            sender: sender.clone(),
            index,
            offset: 0,
            calls: Watch::new(tools.clone()),
            slot: slot.clone(),
        };
        all.spawn(line.tell(reply));
    }
    let mut total = Total::default();
    while let Some(ended) = all.join_next().await {
        let (usage, first) = ended.map_err(|_| Fault::internal("writing the answer panicked"))??;
        total.add(&usage, first);
    }
    if wanted.include_usage {
        let _ = sender.send(event(&writer.usage(&total))).await;
    }
    Ok(())
}

/// One choice.
struct Line {
    service: Arc<Service>,
    writer: Arc<Writer>,
    sender: mpsc::Sender<Bytes>,
    index: usize,
    /// Characters given out so far, for the older form of log-probabilities.
    offset: usize,
    calls: Watch,
    slot: Slot,
}

impl Line {
    async fn tell(mut self, mut reply: Reply) -> Result<(Usage, bool), Fault> {
        let gone = || Fault::unavailable("the client has left");
        if let Some(opening) = self.writer.opening(self.index) {
            self.send(&opening).await?;
        }
        loop {
            let piece = tokio::select! {
                piece = reply.next(&self.service) => piece,
                () = self.sender.closed() => return Err(gone()),
            };
            match piece.ok_or_else(|| Fault::internal("the answer broke off"))?? {
                Piece::Token { text, choice } => {
                    let text = self.calls.push(text);
                    let tokenizer = self.service.model().tokenizer();
                    let logprobs = self.writer.logprobs(&choice, tokenizer, &mut self.offset);
                    if !text.is_empty() || logprobs.is_some() {
                        self.send(&self.writer.text(self.index, &text, logprobs)).await?;
                    }
                }
                Piece::End { text, finish, usage } => {
                    let (text, calls) = self.calls.end(text);
                    if !text.is_empty() {
                        self.send(&self.writer.text(self.index, &text, None)).await?;
                    }
                    let finish = if calls.is_empty() { finish.word() } else { "tool_calls" };
                    if !calls.is_empty() {
                        self.send(&self.writer.called(self.index, &calls)).await?;
                    }
                    if let Some(seen) = look(&self.service, &mut reply, &self.slot).await? {
                        self.send(&self.writer.attention(self.index, &seen)).await?;
                    }
                    self.send(&self.writer.end(self.index, finish)).await?;
                    return Ok((usage, reply.index == 0));
                }
            }
        }
    }

    async fn send(&self, json: &Json) -> Result<(), Fault> {
        let sent = self.sender.send(event(json)).await;
        sent.map_err(|_| Fault::unavailable("the client has left"))
    }
}

/// Holds back what may be a call of a tool.
struct Watch {
    tools: Arc<Option<Tools>>,
    mark: Option<StopStrings>,
    text: String,
    shown: usize,
    caught: bool,
}

impl Watch {
    fn new(tools: Arc<Option<Tools>>) -> Self {
        let mark =
            tools.as_ref().as_ref().and_then(Tools::mark).map(|mark| StopStrings::new(&[mark.to_owned()]));
        Self { tools, mark, text: String::new(), shown: 0, caught: false }
    }

    /// More text: what of it may be shown now.
    fn push(&mut self, text: String) -> String {
        if self.tools.is_none() {
            return text;
        }
        self.text += &text;
        let Some(mark) = self.mark.as_mut().filter(|_| !self.caught) else { return String::new() };
        let (show, caught) = mark.push(&text);
        self.shown += show.len();
        self.caught = caught;
        show
    }

    /// The end: what is left to show, and the calls.
    fn end(&mut self, text: String) -> (String, Vec<crate::openai::tools::Call>) {
        let Some(tools) = self.tools.as_ref() else { return (text, Vec::new()) };
        self.text += &text;
        let (_, calls) = tools.calls(&self.text);
        let rest = self.text.get(self.shown..).unwrap_or_default();
        (if calls.is_empty() { rest.to_owned() } else { String::new() }, calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::ToolStyle;
    use crate::openai::tools::Call;

    /// What is shown piece by piece, and the calls at the end.
    fn watched(style: ToolStyle, pieces: &[&str]) -> (Vec<String>, Vec<Call>) {
        let mut watch = Watch::new(Arc::new(Some(Tools::free(style))));
        let mut shown: Vec<String> = pieces.iter().map(|piece| watch.push((*piece).to_owned())).collect();
        let (rest, calls) = watch.end(String::new());
        shown.push(rest);
        (shown, calls)
    }

    #[test]
    fn a_call_is_never_shown_and_what_is_none_is_shown_in_the_end() {
        let call = Call { name: "look".into(), arguments: "{}".into() };
        let (shown, calls) = watched(
            ToolStyle::Tagged,
            &["I lo", "ok <to", "ol_call>{\"name\": \"look\", ", "\"arguments\": {}}"],
        );
        assert_eq!(
            (shown.concat().as_str(), shown[0].as_str(), calls),
            ("I look ", "I lo", vec![call.clone()])
        );
        let (shown, calls) = watched(ToolStyle::Tagged, &["a <tool", "box", " <tool_call>{", "oops"]);
        assert_eq!((shown.concat().as_str(), calls), ("a <toolbox <tool_call>{oops", vec![]));
        let (shown, calls) = watched(ToolStyle::Bare, &["{\"name\": \"look\", ", "\"parameters\": {}}"]);
        assert_eq!((shown.concat().as_str(), calls), ("", vec![call]));
        let (shown, calls) = watched(ToolStyle::Bare, &["just ", "words"]);
        assert_eq!((shown, calls), (vec![String::new(), String::new(), "just words".into()], vec![]));
    }
}
