"""What is compared: pure functions, tensors in, a tensor out.

``f(student, teacher, ..., reduction="mean")``; see `kdlab.losses.soft_targets` for the conventions.
"""

from kdlab.losses.attention import (
    attention_distribution_loss,
    attention_score_loss,
    hidden_state_loss,
    relation_loss,
    self_attention_relation,
)
from kdlab.losses.boundaries import (
    activation_boundary_loss,
    batch_norm_margin,
    factor_transfer_loss,
    hierarchical_context_loss,
    overhaul_loss,
)
from kdlab.losses.channel_gates import channel_gated_hint_loss
from kdlab.losses.checks import unchecked_values, weighted_samples
from kdlab.losses.divergences import kl_divergence
from kdlab.losses.features import (
    attention_map,
    attention_transfer_loss,
    channel_wise_loss,
    flow_loss,
    flow_matrix,
    hint_loss,
    neuron_selectivity_loss,
    variational_information_loss,
)
from kdlab.losses.gates import (
    better_gate,
    confidence_aware_weights,
    confidence_gate,
    correct_gate,
    entropy_gate,
    gate_counts,
    margin_gate,
    median_gate,
    mixture_loss,
    wsld_gate,
    wttm_gate,
)
from kdlab.losses.gradients import (
    gradient_attention_loss,
    input_gradient,
    jacobian_matching_loss,
    sobolev_loss,
)
from kdlab.losses.labels import hard_label_loss
from kdlab.losses.logits import (
    batch_relation_loss,
    class_relation_loss,
    hard_target_loss,
    logit_matching_loss,
    map_classes,
)
from kdlab.losses.relations import (
    contrastive_loss,
    correlation_congruence_loss,
    instance_edge_loss,
    instance_transformation_loss,
    probabilistic_transfer_loss,
    relational_angle_loss,
    relational_distance_loss,
    similarity_preserving_loss,
)
from kdlab.losses.soft_targets import (
    decoupled_loss,
    dist_loss,
    soft_target_loss,
    standardize_logits,
    ttm_loss,
)
from kdlab.losses.tasks import (
    multi_label_loss,
    sigmoid_target_loss,
    value_loss,
    value_target_loss,
)

__all__ = [
    "activation_boundary_loss",
    "attention_distribution_loss",
    "attention_map",
    "attention_score_loss",
    "attention_transfer_loss",
    "batch_norm_margin",
    "batch_relation_loss",
    "better_gate",
    "channel_gated_hint_loss",
    "channel_wise_loss",
    "class_relation_loss",
    "confidence_aware_weights",
    "confidence_gate",
    "contrastive_loss",
    "correct_gate",
    "correlation_congruence_loss",
    "decoupled_loss",
    "dist_loss",
    "entropy_gate",
    "factor_transfer_loss",
    "flow_loss",
    "flow_matrix",
    "gate_counts",
    "gradient_attention_loss",
    "hard_label_loss",
    "hard_target_loss",
    "hidden_state_loss",
    "hierarchical_context_loss",
    "hint_loss",
    "input_gradient",
    "instance_edge_loss",
    "instance_transformation_loss",
    "jacobian_matching_loss",
    "kl_divergence",
    "logit_matching_loss",
    "map_classes",
    "margin_gate",
    "median_gate",
    "mixture_loss",
    "multi_label_loss",
    "neuron_selectivity_loss",
    "overhaul_loss",
    "probabilistic_transfer_loss",
    "relation_loss",
    "relational_angle_loss",
    "relational_distance_loss",
    "self_attention_relation",
    "sigmoid_target_loss",
    "similarity_preserving_loss",
    "sobolev_loss",
    "soft_target_loss",
    "standardize_logits",
    "ttm_loss",
    "unchecked_values",
    "value_loss",
    "value_target_loss",
    "variational_information_loss",
    "weighted_samples",
    "wsld_gate",
    "wttm_gate",
]
