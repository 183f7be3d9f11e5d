"""Does early attention of CLS look everywhere, middle attention at objects, late attention at what tells classes?"""
