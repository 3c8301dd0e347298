"""MONAI Label for the dental segmenter. `monailabel` is imported only here; nothing else in `common` needs it.

Importing this package puts the stand-in for torchvision in place, before any module of it imports MONAI Label.
"""

from .torchvision_stand_in import install

install()
