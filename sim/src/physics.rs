//! Rapier's sets as one value that clones, steps and hashes whole; and the passage between its numbers and ours.

use nalgebra::{Isometry3, Quaternion, Translation3, UnitQuaternion, Vector3};
use rapier3d::math::{Pose, Rotation, Vector};
use rapier3d::prelude::*;

/// Everything that moves, and what rapier remembers of it.
pub(crate) struct Physics {
    pub bodies: RigidBodySet,
    pub colliders: ColliderSet,
    pub multibodies: MultibodyJointSet,
    pub narrow_phase: NarrowPhase,
    parameters: IntegrationParameters,
    pipeline: PhysicsPipeline,
    islands: IslandManager,
    broad_phase: BroadPhaseBvh,
    impulse_joints: ImpulseJointSet,
    soft_bodies: SoftBodySet,
    ccd: CCDSolver,
}

impl Clone for Physics {
    fn clone(&self) -> Self {
        Self {
            bodies: self.bodies.clone(),
            colliders: self.colliders.clone(),
            multibodies: self.multibodies.clone(),
            narrow_phase: self.narrow_phase.clone(),
            parameters: self.parameters,
            // The pipeline holds buffers only: a fresh one steps to the same bytes.
            pipeline: PhysicsPipeline::new(),
            islands: self.islands.clone(),
            broad_phase: self.broad_phase.clone(),
            impulse_joints: self.impulse_joints.clone(),
            soft_bodies: self.soft_bodies.clone(),
            ccd: self.ccd.clone(),
        }
    }
}

impl Physics {
    /// An empty world. One step lasts `step_secs` and is solved in `iterations` equal parts.
    pub fn new(step_secs: f64, iterations: usize) -> Self {
        let parameters = IntegrationParameters {
            dt: step_secs as Real,
            num_solver_iterations: iterations,
            // Rapier's tolerances are made for metre-sized things; ours are centimetres.
            length_unit: 0.1,
            normalized_prediction_distance: 0.05,
            normalized_contact_recycle_distance: 0.001,
            // As stiff as four iterations at 120 Hz bear: a squeezed object then yields by less than a millimetre.
            contact_softness: SpringCoefficients { natural_frequency: 120.0, damping_ratio: 5.0 },
            normalized_max_corrective_velocity: 0.5,
            friction_model: FrictionModel::Coulomb,
            max_ccd_substeps: 0,
            ..Default::default()
        };
        Self {
            bodies: RigidBodySet::new(),
            colliders: ColliderSet::new(),
            multibodies: MultibodyJointSet::new(),
            narrow_phase: NarrowPhase::new(),
            parameters,
            pipeline: PhysicsPipeline::new(),
            islands: IslandManager::new(),
            broad_phase: BroadPhaseBvh::new(),
            impulse_joints: ImpulseJointSet::new(),
            soft_bodies: SoftBodySet::new(),
            ccd: CCDSolver::new(),
        }
    }

    /// Adds a body with its colliders.
    pub fn insert(
        &mut self,
        body: RigidBodyBuilder,
        colliders: impl IntoIterator<Item = ColliderBuilder>,
    ) -> RigidBodyHandle {
        let handle = self.bodies.insert(body);
        for collider in colliders {
            self.colliders.insert_with_parent(collider, handle, &mut self.bodies);
        }
        handle
    }

    /// Advances by one step.
    pub fn step(&mut self) {
        self.pipeline.step(
            Vector::new(0.0, 0.0, -9.81),
            &self.parameters,
            &mut self.islands,
            &mut self.broad_phase,
            &mut self.narrow_phase,
            &mut self.bodies,
            &mut self.colliders,
            &mut self.impulse_joints,
            &mut self.multibodies,
            &mut self.soft_bodies,
            &mut self.ccd,
            &(),
            &(),
        );
    }

    /// FNV-1a (Fowler, Noll, Vo) over the bits of every pose, velocity and joint coordinate.
    pub fn hash(&self) -> u64 {
        let mut bytes = Vec::new();
        let mut eat = |x: f32| bytes.extend(x.to_bits().to_le_bytes());
        for (_, body) in self.bodies.iter() {
            let pose = body.position();
            pose.translation.to_array().into_iter().for_each(&mut eat);
            pose.rotation.to_array().into_iter().for_each(&mut eat);
            body.linvel().to_array().into_iter().for_each(&mut eat);
            body.angvel().to_array().into_iter().for_each(&mut eat);
        }
        for multibody in self.multibodies.multibodies() {
            multibody.generalized_velocity().iter().copied().for_each(&mut eat);
            for link in multibody.links() {
                let coords = link.joint().coords();
                (0..6).map(|axis| coords[axis]).for_each(&mut eat);
            }
        }
        vela_embodiment::fnv1a(bytes)
    }
}

/// Our pose as rapier's.
pub(crate) fn to_pose(pose: &Isometry3<f64>) -> Pose {
    let q = pose.rotation.coords;
    Pose::from_parts(
        to_vector(&pose.translation.vector),
        Rotation::from_xyzw(q.x as Real, q.y as Real, q.z as Real, q.w as Real).normalize(),
    )
}

/// Rapier's pose as ours.
pub(crate) fn from_pose(pose: &Pose) -> Isometry3<f64> {
    let [x, y, z, w] = pose.rotation.to_array().map(f64::from);
    Isometry3::from_parts(
        Translation3::from(from_vector(pose.translation)),
        UnitQuaternion::from_quaternion(Quaternion::new(w, x, y, z)),
    )
}

/// Our vector as rapier's.
pub(crate) fn to_vector(vector: &Vector3<f64>) -> Vector {
    Vector::new(vector.x as Real, vector.y as Real, vector.z as Real)
}

/// Rapier's vector as ours.
pub(crate) fn from_vector(vector: Vector) -> Vector3<f64> {
    Vector3::from(vector.to_array().map(f64::from))
}
