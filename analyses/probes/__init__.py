"""What can be read from a model's tokens: probes of every role at every layer, fitted in one pass, applied to any run.

`fit_probes` fits, `FittedProbes.evaluate` applies, under an intervention too. The estimators are scikit-learn's kind.
"""

from analyses.activations.sites import EMBEDDING, Site, SiteReader, check_roles, roles_of
from analyses.probes.estimators import LogisticProbeClassifier, MLPProbeClassifier, RidgeProbeClassifier
from analyses.probes.fitted import Evaluation, FittedProbes, evaluate_probes
from analyses.probes.fitting import fit_probes, fit_with_controls
from analyses.probes.probe import Probe
from analyses.probes.settings import Fits, Probing
from analyses.probes.targets import Target, TargetData, target_data, with_target
from analyses.probes.training import Training

__all__ = [
    "EMBEDDING",
    "Evaluation",
    "Fits",
    "FittedProbes",
    "LogisticProbeClassifier",
    "MLPProbeClassifier",
    "Probe",
    "Probing",
    "RidgeProbeClassifier",
    "Site",
    "SiteReader",
    "Target",
    "TargetData",
    "Training",
    "check_roles",
    "evaluate_probes",
    "fit_probes",
    "fit_with_controls",
    "roles_of",
    "target_data",
    "with_target",
]
