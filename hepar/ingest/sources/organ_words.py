"""Words by which data sets, contours and segments name the liver, tumours, and what is neither, as patterns."""

from __future__ import annotations

LIVER = r"liver|hepar|leber|foie"
TUMOURS = r"tumou?rs?|lesions?|cancers?|metastas[ei]s|mets?|neoplasms?|carcinomas?|hccs?"
ORGANS = (  # in which tumours may grow
    r"spleen|splenic|[lr]?kid(?:neys?)?|renal|pancrea(?:s|tic)|gall ?bladder|o?esophag(?:us|eal)|stomach|gastric"
    r"|adrenals?|[lr]ag|duoden(?:um|al)|(?:small )?bowel|intestines?|jejunum|ileum|appendix|colon|colonic|colorectal"
    r"|sigmoid|rect(?:um|al)|bladder|prostate|uter(?:us|ine)|ovar(?:y|ies|ian)|cervix|test[ei]s|lungs?|pulmonary|pleura"
    r"|heart|atri(?:um|al)|ventricle|myocardium|trachea|bronch(?:us|i)|thyroid|thymus|breasts?|brain|lymph|nodes?|nodal"
    r"|spin(?:e|al)|bones?|osseous|vertebra[el]?|sacrum|ribs?|sternum|skull|humer(?:us|i)|scapulae?|clavicul(?:a|ae)"
    r"|clavicles?|fem(?:ur|urs|ora|oral)|hips?|pelvis|tibia|fibula"
)
OTHERS = (  # beside organs
    r"aorta|arota|vena|veins?|(?:post)?cava|[is]vc|arter(?:y|ies)|vessels?|trunk|ducts?|bile|biliary|body|skin|fat"
    r"|muscles?|ascites|thrombus|discs?|cartilages?|gluteus|autochthon|(?:ilio)?psoas|quadriceps|thigh|sartorius"
)
