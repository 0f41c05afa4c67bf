//! Key expressions, liveliness tokens and attachments of `rmw_zenoh` (its design page:
//! <https://github.com/ros2/rmw_zenoh/blob/rolling/docs/design.md>).
//!
//! Topic: `DOMAIN/TOPIC/TYPE/HASH`. Token: `@ros2_lv/DOMAIN/ZID/NODE/ENTITY/KIND/ENCLAVE/NAMESPACE/NAME`, for an
//! endpoint also `/TOPIC/TYPE/HASH/QOS`, with `%` for every slash and for what is empty.

use serde::{Deserialize, Serialize};
use vela_embodiment::{Error, Result, Stamp};

/// The ROS 2 distribution at the other end. The messages are the same in all of them; Humble knows no hashes of their
/// definitions, and `rmw_zenoh` writes a word in their place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distribution {
    /// 2022.
    Humble,
    /// 2024.
    #[default]
    Jazzy,
    /// 2025.
    Kilted,
    /// The newest.
    Rolling,
}

impl Distribution {
    /// What stands for the hash of a type in this distribution's keys.
    pub fn hash(self, message: &MessageType) -> &'static str {
        match self {
            Self::Humble => "TypeHashNotSupported",
            Self::Jazzy | Self::Kilted | Self::Rolling => message.hash,
        }
    }
}

/// A message type as ROS 2 Jazzy and later know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageType {
    /// Its DDS name.
    pub dds: &'static str,
    /// Hash of its definition (REP 2016).
    pub hash: &'static str,
}

/// `sensor_msgs/msg/JointState`.
pub const JOINT_STATE: MessageType = MessageType {
    dds: "sensor_msgs::msg::dds_::JointState_",
    hash: "RIHS01_a13ee3a330e346c9d87b5aa18d24e11690752bd33a0350f11c5882bc9179260e",
};
/// `sensor_msgs/msg/CompressedImage`.
pub const COMPRESSED_IMAGE: MessageType = MessageType {
    dds: "sensor_msgs::msg::dds_::CompressedImage_",
    hash: "RIHS01_15640771531571185e2efc8a100baf923961a4d15d5569652e6cb6691e8e371a",
};
/// `std_msgs/msg/String`.
pub const STRING: MessageType = MessageType {
    dds: "std_msgs::msg::dds_::String_",
    hash: "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18",
};
/// `trajectory_msgs/msg/JointTrajectory`.
pub const JOINT_TRAJECTORY: MessageType = MessageType {
    dds: "trajectory_msgs::msg::dds_::JointTrajectory_",
    hash: "RIHS01_179b33eba59d676f6d967ac71fe35e7ca2f64b2f3928f4a018cec115e213796e",
};

/// `sensor_msgs/msg/Image`.
pub const IMAGE: MessageType = MessageType {
    dds: "sensor_msgs::msg::dds_::Image_",
    hash: "RIHS01_d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47",
};
/// `std_msgs/msg/Bool`.
pub const BOOL: MessageType = MessageType {
    dds: "std_msgs::msg::dds_::Bool_",
    hash: "RIHS01_feb91e995ff9ebd09c0cb3d2aed18b11077585839fb5db80193b62d74528f6c9",
};
/// `std_msgs/msg/Float64MultiArray`.
pub const FLOAT64_MULTI_ARRAY: MessageType = MessageType {
    dds: "std_msgs::msg::dds_::Float64MultiArray_",
    hash: "RIHS01_1025ddc6b9552d191f89ef1a8d2f60f3d373e28b283d8891ddcc974e8c55397f",
};
/// `tf2_msgs/msg/TFMessage`.
pub const TF_MESSAGE: MessageType = MessageType {
    dds: "tf2_msgs::msg::dds_::TFMessage_",
    hash: "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087",
};

/// `control_msgs/action/GripperCommand`: the service that takes its goals.
pub const GRIPPER_SEND_GOAL: MessageType = MessageType {
    dds: "control_msgs::action::dds_::GripperCommand_SendGoal_",
    hash: "RIHS01_6bf8cc4ce80cd499e7dd3258c03c50c3fa6672b469ff8355339ef1df77fcd212",
};
/// The one that answers when a goal has ended.
pub const GRIPPER_GET_RESULT: MessageType = MessageType {
    dds: "control_msgs::action::dds_::GripperCommand_GetResult_",
    hash: "RIHS01_7e60a7606063d4a2728d21badac099e68b734a196ac3ab42d1d4c668eb0bb3cd",
};
/// What is told while a goal is on its way.
pub const GRIPPER_FEEDBACK: MessageType = MessageType {
    dds: "control_msgs::action::dds_::GripperCommand_FeedbackMessage_",
    hash: "RIHS01_392ff03fcd872f9dc2405cbeb2897fcf011ad9998458b6aa85c603b8a49e431d",
};
/// `action_msgs/srv/CancelGoal`, of every action.
pub const CANCEL_GOAL: MessageType = MessageType {
    dds: "action_msgs::srv::dds_::CancelGoal_",
    hash: "RIHS01_573d8b0a534451d7bc2ac8c5ffde8ac14b8593b7001175d0cd6516dcbeb8689a",
};

/// The key expression of a topic with any type and any hash: distributions differ in the hash and not in the message.
pub fn any_type(domain: u32, topic: &str) -> String {
    format!("{domain}/{}/*/*", topic.trim_matches('/'))
}

/// A topic or a service with its type and its quality of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// With its leading slash.
    pub name: String,
    message: MessageType,
    best_effort: bool,
}

impl Topic {
    /// A reliable, volatile topic or service that keeps the last ten.
    pub fn new(name: &str, message: &MessageType) -> Self {
        Self { name: name.to_owned(), message: *message, best_effort: false }
    }

    /// The same as sensors do it: best effort, the last five.
    #[must_use]
    pub fn best_effort(self) -> Self {
        Self { best_effort: true, ..self }
    }

    /// The same as this distribution knows it.
    #[must_use]
    pub fn in_distribution(mut self, distribution: Distribution) -> Self {
        self.message.hash = distribution.hash(&self.message);
        self
    }

    /// Its type and the type's hash, as they end its key.
    pub fn type_and_hash(&self) -> String {
        format!("{}/{}", self.message.dds, self.message.hash)
    }

    /// Whether it is a sensor's.
    pub fn is_best_effort(&self) -> bool {
        self.best_effort
    }

    /// Its key expression.
    pub fn key(&self, domain: u32) -> String {
        format!("{domain}/{}/{}", self.name.trim_matches('/'), self.type_and_hash())
    }

    fn qos(&self) -> &'static str {
        // reliability:durability:history,depth:deadline:lifespan:liveliness; empty means the default.
        if self.best_effort { "2::,5:,:,:,," } else { "::,10:,:,:,," }
    }
}

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// Publishes.
    Publisher,
    /// Subscribes.
    Subscription,
    /// Answers the requests of a service.
    Server,
    /// Sends requests to a service.
    Client,
}

impl EndpointKind {
    /// Its word in a token.
    fn word(self) -> &'static str {
        match self {
            Self::Publisher => "MP",
            Self::Subscription => "MS",
            Self::Server => "SS",
            Self::Client => "SC",
        }
    }
}

/// The tokens of every publisher.
pub fn publishers(domain: u32) -> String {
    format!("@ros2_lv/{domain}/*/*/*/MP/**")
}

/// The tokens of everyone who answers a service, whatever its type.
pub fn servers(domain: u32, service: &str) -> String {
    format!("@ros2_lv/{domain}/*/*/*/SS/*/*/*/{}/*/*/*", service.replace('/', "%"))
}

/// A node and its place in the graph; number 0 of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entity {
    domain: u32,
    zid: String,
    name: String,
}

impl Entity {
    /// A node in the root namespace of a session.
    pub fn node(domain: u32, zid: &str, name: &str) -> Self {
        Self { domain, zid: zid.to_owned(), name: name.to_owned() }
    }

    /// The node's liveliness token.
    pub fn token(&self) -> String {
        format!("@ros2_lv/{}/{}/0/0/NN/%/%/{}", self.domain, self.zid, self.name)
    }

    /// The token of one of its endpoints; `number` is unique in the session and not 0.
    pub fn endpoint_token(&self, number: u32, kind: EndpointKind, topic: &Topic) -> String {
        let kind = kind.word();
        let (domain, zid, name) = (self.domain, &self.zid, &self.name);
        let (topic_name, message) = (topic.name.replace('/', "%"), topic.message);
        let (dds, hash, qos) = (message.dds, message.hash, topic.qos());
        format!("@ros2_lv/{domain}/{zid}/0/{number}/{kind}/%/%/{name}/{topic_name}/{dds}/{hash}/{qos}")
    }
}

/// The identity that the endpoint with this token has in its messages: the token's 128-bit XXH3, its lower half first.
pub fn gid_of(token: &str) -> [u8; 16] {
    xxhash_rust::xxh3::xxh3_128(token.as_bytes()).to_le_bytes()
}

/// What rides beside every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Counts the messages of one publisher, from 1.
    pub sequence: i64,
    /// When, on the publisher's clock.
    pub stamp: Stamp,
    /// The publisher's identity.
    pub gid: [u8; 16],
}

impl Attachment {
    /// Sequence and nanoseconds as little-endian i64, the identity's length, the identity.
    pub fn encode(&self) -> [u8; 33] {
        let mut bytes = [0; 33];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&i64::try_from(self.stamp.0).unwrap_or(i64::MAX).to_le_bytes());
        bytes[16] = 16;
        bytes[17..].copy_from_slice(&self.gid);
        bytes
    }

    /// The attachment in these bytes.
    ///
    /// # Errors
    /// They are not 33, or the identity is not 16 long.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let refuse = |why: String| Error::Parse { what: "ROS 2 attachment".into(), why };
        let (Some((sequence, rest)), true) = (bytes.split_first_chunk::<8>(), bytes.len() == 33) else {
            return Err(refuse(format!("expected 33 bytes, got {}", bytes.len())));
        };
        let (Some((nanos, [16, gid @ ..])), true) = (rest.split_first_chunk::<8>(), rest.len() == 25) else {
            return Err(refuse("expected an identity of 16 bytes".into()));
        };
        let gid = gid.try_into().map_err(|_| refuse("expected an identity of 16 bytes".into()))?;
        let stamp = Stamp(i64::from_le_bytes(*nanos).max(0) as u64);
        Ok(Self { sequence: i64::from_le_bytes(*sequence), stamp, gid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_s_token_tells_its_identity() {
        // What XXH3's authors say of nothing.
        let nothing = 0x99aa_06d3_0147_98d8_6001_c324_468d_497f_u128.to_le_bytes();
        assert_eq!(gid_of(""), nothing);
    }

    #[test]
    fn type_hashes_are_those_of_ros_2_jazzy() -> std::result::Result<(), serde_json::Error> {
        let hashes: std::collections::BTreeMap<String, String> =
            serde_json::from_str(include_str!("../../../tests/golden/ros2/type_hashes.json"))?;
        let known = [
            JOINT_STATE,
            COMPRESSED_IMAGE,
            IMAGE,
            STRING,
            BOOL,
            FLOAT64_MULTI_ARRAY,
            JOINT_TRAJECTORY,
            TF_MESSAGE,
            GRIPPER_SEND_GOAL,
            GRIPPER_GET_RESULT,
            GRIPPER_FEEDBACK,
            CANCEL_GOAL,
        ];
        assert_eq!(hashes.len(), known.len());
        for message in known {
            let name = message.dds.replace("::dds_::", "/").replace("::", "/");
            assert_eq!(
                hashes.get(name.trim_end_matches('_')).map(String::as_str),
                Some(message.hash),
                "{name}"
            );
        }
        Ok(())
    }

    #[test]
    fn keys_and_tokens_are_those_of_rmw_zenoh() {
        let topic = Topic::new("/joint_states", &JOINT_STATE);
        assert_eq!(
            topic.key(0),
            "0/joint_states/sensor_msgs::msg::dds_::JointState_/\
             RIHS01_a13ee3a330e346c9d87b5aa18d24e11690752bd33a0350f11c5882bc9179260e"
        );
        let node = Entity::node(0, "aac3178e146ba6f1fc6e6a4085e77f21", "arm");
        assert_eq!(node.token(), "@ros2_lv/0/aac3178e146ba6f1fc6e6a4085e77f21/0/0/NN/%/%/arm");
        let chatter = Topic::new("/arm/chatter", &STRING);
        assert_eq!(
            node.endpoint_token(10, EndpointKind::Publisher, &chatter),
            "@ros2_lv/0/aac3178e146ba6f1fc6e6a4085e77f21/0/10/MP/%/%/arm/%arm%chatter/std_msgs::msg::dds_::String_/\
             RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18/::,10:,:,:,,"
        );
        assert!(chatter.key(7).starts_with("7/arm/chatter/std_msgs::msg::dds_::String_/"));
        for distribution in [Distribution::Jazzy, Distribution::Kilted, Distribution::Rolling] {
            assert_eq!(chatter.clone().in_distribution(distribution), chatter);
        }
        let humble = chatter.clone().in_distribution(Distribution::Humble);
        assert_eq!(humble.key(7), "7/arm/chatter/std_msgs::msg::dds_::String_/TypeHashNotSupported");
        let token = node.endpoint_token(10, EndpointKind::Publisher, &humble);
        assert!(
            token.ends_with("/std_msgs::msg::dds_::String_/TypeHashNotSupported/::,10:,:,:,,"),
            "{token}"
        );
        assert_eq!(any_type(7, "/arm/chatter"), "7/arm/chatter/*/*");
    }

    #[test]
    fn an_attachment_has_33_bytes_and_comes_back() -> Result<()> {
        let attachment = Attachment { sequence: 258, stamp: Stamp(3), gid: [7; 16] };
        let bytes = attachment.encode();
        assert_eq!(bytes[..18], [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 16, 7]);
        assert_eq!(Attachment::decode(&bytes)?, attachment);
        assert!(Attachment::decode(&bytes[..32]).is_err());
        let mut other = bytes;
        other[16] = 15;
        assert!(Attachment::decode(&other).is_err());
        Ok(())
    }
}
