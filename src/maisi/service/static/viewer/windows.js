// Windows of Hounsfield units, as radiologists set them: level is the middle, width all of it.

export const WINDOWS = {
  soft: { text: "Soft tissue", level: 40, width: 400 },
  lung: { text: "Lung", level: -600, width: 1500 },
  bone: { text: "Bone", level: 400, width: 1800 },
};

export const rangeOf = ({ level, width }) => [level - width / 2, level + width / 2];
