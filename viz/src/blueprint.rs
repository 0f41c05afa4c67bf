//! The first view: the arm large on the left, cameras, joints, latency and words on the right.

use rerun::blueprint::components::{BackgroundKind, Corner2D, PanelState};
use rerun::blueprint::{
    Blueprint, BlueprintActivation, BlueprintPanel, ContainerLike, Horizontal, SelectionPanel, Spatial2DView,
    Spatial3DView, TextDocumentView, TextLogView, TimePanel, TimeSeriesView, Vertical, View,
};
use rerun::external::re_sdk_types::blueprint::archetypes::{
    Background, EyeControls3D, LineGrid3D, PlotLegend, TextLogColumns,
};
use rerun::external::re_sdk_types::blueprint::components::TextLogColumn;
use rerun::external::re_sdk_types::blueprint::datatypes::{self, TextLogColumnKind};
use rerun::log::LogMsg;
use rerun::{AsComponents, RecordingStream, RecordingStreamBuilder, RecordingStreamResult};
use vela_embodiment::Embodiment;

/// The timeline of every event: seconds of control time, one episode after another.
pub(crate) const TIMELINE: &str = "time";

/// Where the eye stands and what it looks at, m in the base frame; scaled by the arm's reach over the SO-101's.
const EYE: [f64; 3] = [0.54, -0.34, 0.34];
const TARGET: [f64; 3] = [0.155, 0.005, 0.06];

/// Sends the first view to a recording.
pub(crate) fn send(
    recording: &RecordingStream,
    embodiment: &Embodiment,
    scale: f64,
) -> RecordingStreamResult<()> {
    let arm = view(Spatial3DView::new("arm").with_origin("/world").with_contents(["/world/**"]));
    let joints = view(
        TimeSeriesView::new("joints: measured (strong), sent (pale); rad").with_contents(["/joints/**"]),
    );
    let latency = view(TimeSeriesView::new("latency; ms").with_contents(["/latency/**"]));
    let cameras = embodiment.cameras.iter().map(|camera| {
        let path = format!("/cameras/{}", camera.name);
        Spatial2DView::new(camera.name.clone()).with_origin(path.clone()).with_contents([path]).into()
    });
    let task = TextDocumentView::new("task").with_origin("/task").with_contents(["/task"]).into();
    let log = view(TextLogView::new("log").with_origin("/log").with_contents(["/log/**"]));
    let columns = [
        (TextLogColumnKind::EntityPath, false),
        (TextLogColumnKind::LogLevel, false),
        (TextLogColumnKind::Body, true),
    ]
    .map(|(kind, visible)| TextLogColumn(datatypes::TextLogColumn { visible: visible.into(), kind }));
    let at = |point: [f64; 3]| point.map(|x| (x * scale) as f32);
    let properties: Vec<(String, &str, Box<dyn AsComponents>)> = vec![
        (
            path(&arm),
            "EyeControls3D",
            Box::new(
                EyeControls3D::new()
                    .with_position(at(EYE))
                    .with_look_target(at(TARGET))
                    .with_eye_up([0.0, 0.0, 1.0]),
            ),
        ),
        (
            path(&arm),
            "Background",
            Box::new(
                Background::new(BackgroundKind::SolidColor).with_color(rerun::Color::from_rgb(222, 228, 234)),
            ),
        ),
        (path(&arm), "LineGrid3D", Box::new(LineGrid3D::new().with_visible(false))),
        (path(&log), "TextLogColumns", Box::new(TextLogColumns::new().with_text_log_columns(columns))),
        (path(&joints), "PlotLegend", Box::new(PlotLegend::new().with_visible(false))),
        (path(&latency), "PlotLegend", Box::new(PlotLegend::new().with_corner(Corner2D::LeftTop))),
    ];
    let right = Vertical::new([
        task,
        Horizontal::new(cameras.collect::<Vec<ContainerLike>>()).into(),
        ContainerLike::View(joints),
        Horizontal::new([ContainerLike::View(latency), ContainerLike::View(log)])
            .with_column_shares([0.8, 1.2])
            .into(),
    ])
    .with_row_shares([0.62, 1.55, 1.1, 1.0]);
    let root = Horizontal::new([ContainerLike::View(arm), right.into()]).with_column_shares([1.35, 1.0]);
    let blueprint = Blueprint::new(root)
        .with_auto_layout(false)
        .with_auto_views(false)
        .with_blueprint_panel(BlueprintPanel::from_state(PanelState::Collapsed))
        .with_selection_panel(SelectionPanel::from_state(PanelState::Collapsed))
        .with_time_panel(TimePanel::new().with_state(PanelState::Collapsed).with_timeline(TIMELINE));
    send_with_properties(recording, &blueprint, &properties)
}

fn view(from: impl Into<ContainerLike>) -> View {
    match from.into() {
        ContainerLike::View(view) => view,
        _ => View::default(),
    }
}

fn path(view: &View) -> String {
    view.blueprint_path().to_string()
}

/// Rerun's Rust blueprint has no door for a view's own properties (eye, background, grid, legend) in 0.36, so they
/// are logged into the same blueprint store: built in memory first, to learn the store's name.
fn send_with_properties(
    recording: &RecordingStream,
    blueprint: &Blueprint,
    properties: &[(String, &str, Box<dyn AsComponents>)],
) -> RecordingStreamResult<()> {
    let application = recording.store_info().map(|info| info.application_id().clone());
    let application = application.unwrap_or_else(|| "vela".into());
    let (draft, storage) = RecordingStreamBuilder::new(application).memory()?;
    blueprint.send(&draft, BlueprintActivation { make_active: true, make_default: true })?;
    draft.flush_blocking().ok();
    let (mut messages, mut activation) = (Vec::new(), None);
    for message in storage.take() {
        match message {
            LogMsg::BlueprintActivationCommand(command) => activation = Some(command),
            message if message.store_id().is_blueprint() => messages.push(message),
            _ => {}
        }
    }
    let Some(activation) = activation else { return Ok(()) };
    let (more, storage) = RecordingStreamBuilder::from_store_id(&activation.blueprint_id).memory()?;
    more.set_time_sequence("blueprint", 0);
    for (view, name, property) in properties {
        more.log(format!("{view}/{name}"), property.as_ref())?;
    }
    more.flush_blocking().ok();
    messages.extend(storage.take().into_iter().filter(|message| !matches!(message, LogMsg::SetStoreInfo(_))));
    recording.send_blueprint(messages, activation);
    Ok(())
}
