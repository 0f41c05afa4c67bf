//! A robot's URDF as data: links with masses and shapes, joints with axes and limits.

use crate::{Error, JointKind, Result};
use nalgebra::{Isometry3, Matrix3, Translation3, Unit, UnitQuaternion, Vector3};

/// A shape, centred on its own frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Geometry {
    /// Full edge lengths, m.
    Box(Vector3<f64>),
    /// Along z: radius and length, m.
    Cylinder {
        /// m
        radius: f64,
        /// m
        length: f64,
    },
    /// Radius, m.
    Sphere {
        /// m
        radius: f64,
    },
    /// Along z: radius and length of the straight part, m.
    Capsule {
        /// m
        radius: f64,
        /// m
        length: f64,
    },
    /// A mesh file, named and not loaded.
    Mesh(String),
}

/// A geometry on a link.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Where it sits.
    pub link_from_shape: Isometry3<f64>,
    /// What it is.
    pub geometry: Geometry,
    /// Its colour, 0 to 1.
    pub rgba: [f32; 4],
}

/// One rigid part.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// kg; zero for a mere frame.
    pub mass_kg: f64,
    /// Centre of mass and axes of the inertia.
    pub link_from_com: Isometry3<f64>,
    /// About the centre of mass, kg m^2.
    pub inertia_kg_m2: Matrix3<f64>,
    /// What is drawn.
    pub visuals: Vec<Shape>,
    /// What collides.
    pub collisions: Vec<Shape>,
}

/// A joint between two links.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelJoint {
    /// Its name.
    pub name: String,
    /// How it moves; `None` when it is fixed.
    pub kind: Option<JointKind>,
    /// Index of the parent link.
    pub parent: usize,
    /// Index of the child link.
    pub child: usize,
    /// Child frame in the parent at position zero.
    pub parent_from_joint: Isometry3<f64>,
    /// Axis in the child frame.
    pub axis: Unit<Vector3<f64>>,
    /// rad or m
    pub lower: f64,
    /// rad or m
    pub upper: f64,
    /// rad/s or m/s
    pub velocity: f64,
    /// N m or N
    pub effort: f64,
}

impl ModelJoint {
    /// The child link's frame in the parent at a joint position (rad or m).
    pub fn parent_from_child(&self, position: f64) -> Isometry3<f64> {
        match self.kind {
            None => self.parent_from_joint,
            Some(JointKind::Revolute) => {
                self.parent_from_joint * UnitQuaternion::from_axis_angle(&self.axis, position)
            }
            Some(JointKind::Prismatic) => {
                self.parent_from_joint * Translation3::from(self.axis.into_inner() * position)
            }
        }
    }
}

/// A tree of links; links and joints are ordered so that a parent comes before its children.
#[derive(Clone, Debug, PartialEq)]
pub struct RobotModel {
    /// The robot's name.
    pub name: String,
    /// The root is link 0.
    pub links: Vec<Link>,
    /// One per link but the root; parents first.
    pub joints: Vec<ModelJoint>,
}

impl RobotModel {
    /// Reads a URDF text. Continuous joints get limits of one turn each way.
    ///
    /// # Errors
    /// Not XML, no single root, a loop, an axis of zero length, a number that is not finite.
    pub fn from_urdf(text: &str) -> Result<Self> {
        let refuse = |why: String| Error::Parse { what: "URDF".into(), why };
        let urdf = urdf_rs::read_from_string(text).map_err(|e| refuse(e.to_string()))?;
        let colours = |material: &Option<urdf_rs::Material>| {
            let own = material.as_ref().and_then(|m| m.color.as_ref());
            let named = material.as_ref().and_then(|m| {
                urdf.materials.iter().find(|x| x.name == m.name).and_then(|x| x.color.as_ref())
            });
            own.or(named).map_or([0.7, 0.7, 0.7, 1.0], |c| c.rgba.0.map(|x| x as f32))
        };
        let mut left: Vec<&urdf_rs::Joint> = urdf.joints.iter().collect();
        let roots: Vec<&urdf_rs::Link> =
            urdf.links.iter().filter(|l| !left.iter().any(|j| j.child.link == l.name)).collect();
        let [root] = roots[..] else {
            return Err(refuse(format!("expected one root link, got {}", roots.len())));
        };
        let mut model =
            Self { name: urdf.name.clone(), links: vec![link(root, &colours)], joints: Vec::new() };
        while !left.is_empty() {
            let before = left.len();
            let mut rest = Vec::new();
            for joint in left {
                let Some(parent) = model.links.iter().position(|l| l.name == joint.parent.link) else {
                    rest.push(joint);
                    continue;
                };
                let child = urdf.links.iter().find(|l| l.name == joint.child.link);
                let child = child.ok_or_else(|| {
                    refuse(format!("joint '{}' has unknown child '{}'", joint.name, joint.child.link))
                })?;
                if model.links.iter().any(|l| l.name == child.name) {
                    return Err(refuse(format!("link '{}' has two parents", child.name)));
                }
                model.links.push(link(child, &colours));
                model.joints.push(model_joint(joint, parent, model.links.len() - 1)?);
            }
            left = rest;
            if left.len() == before {
                return Err(refuse(format!("joint '{}' hangs on no link of the tree", left[0].name)));
            }
        }
        Ok(model)
    }

    /// A joint by name.
    pub fn joint(&self, name: &str) -> Result<&ModelJoint> {
        self.joints.iter().find(|joint| joint.name == name).ok_or_else(|| Error::Unknown {
            kind: "joint",
            name: name.to_owned(),
            known: self.joints.iter().map(|j| j.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// A link's index by name.
    pub fn link_index(&self, name: &str) -> Result<usize> {
        self.links.iter().position(|link| link.name == name).ok_or_else(|| Error::Unknown {
            kind: "link",
            name: name.to_owned(),
            known: self.links.iter().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }
}

fn pose(origin: &urdf_rs::Pose) -> Isometry3<f64> {
    let [x, y, z] = origin.xyz.0;
    let [roll, pitch, yaw] = origin.rpy.0;
    Isometry3::from_parts(Translation3::new(x, y, z), UnitQuaternion::from_euler_angles(roll, pitch, yaw))
}

fn geometry(from: &urdf_rs::Geometry) -> Geometry {
    match from {
        urdf_rs::Geometry::Box { size } => Geometry::Box(Vector3::from(size.0)),
        urdf_rs::Geometry::Cylinder { radius, length } => {
            Geometry::Cylinder { radius: *radius, length: *length }
        }
        urdf_rs::Geometry::Capsule { radius, length } => {
            Geometry::Capsule { radius: *radius, length: *length }
        }
        urdf_rs::Geometry::Sphere { radius } => Geometry::Sphere { radius: *radius },
        urdf_rs::Geometry::Mesh { filename, .. } => Geometry::Mesh(filename.clone()),
    }
}

fn link(from: &urdf_rs::Link, colours: &dyn Fn(&Option<urdf_rs::Material>) -> [f32; 4]) -> Link {
    let i = &from.inertial.inertia;
    Link {
        name: from.name.clone(),
        mass_kg: from.inertial.mass.value,
        link_from_com: pose(&from.inertial.origin),
        inertia_kg_m2: Matrix3::new(i.ixx, i.ixy, i.ixz, i.ixy, i.iyy, i.iyz, i.ixz, i.iyz, i.izz),
        visuals: from
            .visual
            .iter()
            .map(|v| Shape {
                link_from_shape: pose(&v.origin),
                geometry: geometry(&v.geometry),
                rgba: colours(&v.material),
            })
            .collect(),
        collisions: from
            .collision
            .iter()
            .map(|c| Shape {
                link_from_shape: pose(&c.origin),
                geometry: geometry(&c.geometry),
                rgba: [0.7, 0.7, 0.7, 1.0],
            })
            .collect(),
    }
}

fn model_joint(joint: &urdf_rs::Joint, parent: usize, child: usize) -> Result<ModelJoint> {
    use urdf_rs::JointType;
    let refuse = |why: String| Error::Parse { what: format!("URDF joint '{}'", joint.name), why };
    let kind = match joint.joint_type {
        JointType::Revolute | JointType::Continuous => Some(JointKind::Revolute),
        JointType::Prismatic => Some(JointKind::Prismatic),
        JointType::Fixed => None,
        ref other => return Err(refuse(format!("joints of type {other:?} are not supported"))),
    };
    let axis = Vector3::from(joint.axis.xyz.0);
    let axis = match Unit::try_new(axis, 1e-9) {
        Some(axis) => axis,
        None if kind.is_none() => Vector3::x_axis(),
        None => return Err(refuse("its axis has no length".into())),
    };
    let (lower, upper) = match joint.joint_type {
        JointType::Continuous => (-std::f64::consts::TAU, std::f64::consts::TAU),
        _ => (joint.limit.lower, joint.limit.upper),
    };
    let numbers = [lower, upper, joint.limit.velocity, joint.limit.effort];
    if numbers.iter().chain(&joint.origin.xyz.0).chain(&joint.origin.rpy.0).any(|x| !x.is_finite()) {
        return Err(refuse("a number is not finite".into()));
    }
    Ok(ModelJoint {
        name: joint.name.clone(),
        kind,
        parent,
        child,
        parent_from_joint: pose(&joint.origin),
        axis,
        lower,
        upper,
        velocity: joint.limit.velocity,
        effort: joint.limit.effort,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_urdfs_are_refused_with_a_reason() {
        for (text, why) in [
            ("nonsense", "URDF"),
            ("<robot name='x'><link name='a'/><link name='b'/></robot>", "one root"),
            (
                "<robot name='x'><link name='a'/><link name='b'/><joint name='j' type='revolute'><parent link='a'/>\
                 <child link='b'/><axis xyz='0 0 0'/><limit lower='0' upper='1' effort='1' velocity='1'/></joint></robot>",
                "axis has no length",
            ),
        ] {
            let error = RobotModel::from_urdf(text).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(why), "{error}");
        }
    }
}
