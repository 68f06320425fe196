"""MoLA as a PEFT tuner: a different number of LoRA experts in each layer, chosen per token by a top-k router.

Method: Gao et al., "MoLA: MoE LoRA with Layer-wise Expert Allocation", Findings of NAACL 2025 (arXiv 2402.08562).
Importing the package registers it; importing it twice is harmless.
"""

from peft import mapping

from .config import MOLA, MolaConfig
from .layer import MolaLayer, MolaLinear
from .model import MolaModel
from .shape import built_shape, count_parameters

# `peft.utils.register_peft_method` accepts only members of the closed enum PeftType, so the three tables that it
# would fill are filled here. A dictionary does not tell our one-member string enum from PEFT's.
mapping.PEFT_TYPE_TO_CONFIG_MAPPING[MOLA] = MolaConfig  # type: ignore[index]
mapping.PEFT_TYPE_TO_TUNER_MAPPING[MOLA] = MolaModel  # type: ignore[index]
mapping.PEFT_TYPE_TO_PREFIX_MAPPING[MOLA] = MolaModel.prefix  # type: ignore[index]

__all__ = ["MolaConfig", "MolaLayer", "MolaLinear", "MolaModel", "built_shape", "count_parameters"]
