"""The bridge to the flat files: `from atomica_hf import AtomicaModel`, from a clone, in scripts, tests and notebooks.

The Hub loader copies flat files only, so the code stands at the top of the repository; this package finds it there and
registers it with the Auto classes.
"""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.pipelines import PIPELINE_REGISTRY


ROOT = Path(__file__).resolve().parent.parent
__path__.append(str(ROOT))

from .configuration_atomica import AtomicaConfig  # noqa: E402
from .data_collator_atomica import AtomicaCollator, AtomicaPreTrainingCollator  # noqa: E402
from .modeling_atomica import (  # noqa: E402
    AtomicaForInterfaceContrast,
    AtomicaForMaskedLM,
    AtomicaForPreTraining,
    AtomicaForSequenceClassification,
    AtomicaForTokenClassification,
    AtomicaModel,
)
from .pipelines_atomica import AtomicaFeatureExtractionPipeline, AtomicaFillMaskPipeline  # noqa: E402
from .processing_atomica import AtomicaProcessor  # noqa: E402
from .structure_atomica import ReadReport, Structure, StructureError, read_structures  # noqa: E402
from .tokenization_atomica import AtomicaTokenizer  # noqa: E402


AtomicaConfig.register_for_auto_class()
AtomicaTokenizer.register_for_auto_class()
AtomicaProcessor.register_for_auto_class()

AutoConfig.register("atomica", AtomicaConfig, exist_ok=True)
AutoTokenizer.register(AtomicaConfig, slow_tokenizer_class=AtomicaTokenizer, exist_ok=True)
AutoProcessor.register(AtomicaConfig, AtomicaProcessor, exist_ok=True)
for auto, model in (
    (AutoModel, AtomicaModel),
    (AutoModelForPreTraining, AtomicaForPreTraining),
    (AutoModelForMaskedLM, AtomicaForMaskedLM),
    (AutoModelForSequenceClassification, AtomicaForSequenceClassification),
    (AutoModelForTokenClassification, AtomicaForTokenClassification),
):
    model.register_for_auto_class(auto.__name__)
    auto.register(AtomicaConfig, model, exist_ok=True)
AtomicaForInterfaceContrast._auto_class = "AutoModelForInterfaceContrast"  # there is none; so that its code is saved with it
for task, cls, auto in (
    ("atomica-fill-mask", AtomicaFillMaskPipeline, AutoModelForMaskedLM),
    ("atomica-feature-extraction", AtomicaFeatureExtractionPipeline, AutoModel),
):
    if task not in PIPELINE_REGISTRY.supported_tasks:  # for models that are open already; a folder brings its own
        PIPELINE_REGISTRY.register_pipeline(task, cls, auto, type="multimodal")

__all__ = [
    "ROOT", "AtomicaCollator", "AtomicaConfig", "AtomicaFeatureExtractionPipeline", "AtomicaFillMaskPipeline",
    "AtomicaForInterfaceContrast", "AtomicaForMaskedLM", "AtomicaForPreTraining", "AtomicaForSequenceClassification",
    "AtomicaForTokenClassification", "AtomicaModel", "AtomicaPreTrainingCollator", "AtomicaProcessor", "AtomicaTokenizer",
    "ReadReport", "Structure", "StructureError", "read_structures",
]  # fmt: skip
