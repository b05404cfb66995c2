"""Parts of the study of curvature estimators, ``scripts/study_estimators.py``."""
