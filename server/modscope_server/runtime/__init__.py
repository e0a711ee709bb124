"""The only place with threads and live state: the models, when they may be touched, what hooks see."""
