/* Where the parts of the path are drawn. `u` runs along the path from the image to the loss, `v` across it, so that one
   plan serves both directions: from left to right on a wide screen, from the bottom up on a narrow one. */

const BAR = 32; // along the path: a stage that all tokens pass through, such as the last norm
const GAP = { least: 20, most: 64 }; // between a bar and its neighbour
const BETWEEN_BLOCKS = 8;
const NODE = 24; // along the path: attention or MLP within a block
const BLOCK = { least: 58, most: 220 };

/* Across the path: the blocks' names, the streams' middles, the nodes, and the lanes of the token that is followed,
   each from the place of the least norm to that of the largest. */
const WIDE = { label: [0, 26], forward: 60, nodes: [110, 200], backward: 250, lanes: [[370, 314], [458, 402]], size: 462 };
const NARROW = { label: [0, 44], forward: 62, nodes: [98, 176], backward: 212 };

/**
 * @typedef {{stage: object, text: string, u: [number, number], v: [number, number], part: "bar" | "node" | "label"}} Box
 * @typedef {{across: boolean, length: number, size: number, boxes: Box[], blocks: [number, number][],
 *   stops: {u: [number, number], stage: object}[], loops: {stage: object, middle: number, reach: number}[],
 *   forward: number, backward: number, nodes: [number, number], lanes: [number, number][]}} Plan
 *   stops are the stretches on which the stream carries one stage's result, and loops leave the stream and return to it
 */

/** Whether a path fits from left to right. */
function fitsAcross(stages, width) {
  const { bars, blocks, wide, between } = counted(grouped(stages));
  return bars * BAR + blocks * BLOCK.least + wide * GAP.least + between * BETWEEN_BLOCKS <= width;
}

/** The numbers of bars and blocks, of gaps beside bars, and of gaps between two blocks. */
function counted(parts) {
  const blocks = parts.filter((part) => part.block !== null).length;
  const between = parts.filter((part, i) => i > 0 && isBetweenBlocks(parts[i - 1], part)).length;
  return { bars: parts.length - blocks, blocks, wide: Math.max(0, parts.length - 1 - between), between };
}

function isBetweenBlocks(part, next) {
  return part.block !== null && next.block !== null;
}

/** The plan of a path in a space of a width. @returns {Plan} */
export function makePlan(stages, width) {
  const across = fitsAcross(stages, width);
  const v = across ? WIDE : narrow(width);
  const parts = grouped(stages);
  const { step, wide } = across ? spread(parts, width) : { step: 92, wide: GAP.least };
  const plan = { ...v, across, length: 0, boxes: [], blocks: [], stops: [], loops: [] };
  const streams = [v.forward - 22, v.backward + 22];
  let u = 0;
  parts.forEach((part, i) => {
    const end = u + (part.block === null ? BAR : step);
    if (part.block === null) plan.boxes.push({ stage: part.stages[0], text: part.stages[0].title, u: [u, end], v: streams, part: "bar" });
    else addBlock(plan, part, u, end, v);
    const next = parts[i + 1];
    const gap = next && isBetweenBlocks(part, next) ? BETWEEN_BLOCKS : wide;
    if (next) plan.stops.push({ u: [end, end + gap], stage: part.stages.at(-1) });
    u = end + (next ? gap : 0);
  });
  return { ...plan, length: u };
}

/** The length of a block and of the gaps beside bars that fill a width; the blocks grow first. */
function spread(parts, width) {
  const { bars, blocks, wide, between } = counted(parts);
  const room = width - bars * BAR - wide * GAP.least - between * BETWEEN_BLOCKS;
  const step = Math.min(BLOCK.most, room / Math.max(1, blocks));
  return { step, wide: Math.min(GAP.most, GAP.least + (room - blocks * step) / Math.max(1, wide)) };
}

function narrow(width) {
  const size = Math.min(width, 520);
  const lane = (size - 250 - 12) / 2;
  return { ...NARROW, size, lanes: [[254, 246 + lane], [size - lane + 4, size - 4]] };
}

/** The stages in parts: those of one block together, each other one alone. */
function grouped(stages) {
  const parts = [];
  for (const stage of stages) {
    const block = /^(?:encoder\.|decoder_)?blocks\.\d+/.exec(stage.name)?.[0] ?? null;
    if (block !== null && parts.at(-1)?.block === block) parts.at(-1).stages.push(stage);
    else parts.push({ block, stages: [stage] });
  }
  return parts;
}

/** A block: its name, which opens the whole block, and its branches, whose results are added to the stream. */
function addBlock(plan, { block, stages }, start, end, v) {
  plan.blocks.push([start, end]);
  const whole = stages.find((stage) => stage.kind === "block");
  const branches = stages.filter((stage) => stage !== whole);
  const number = block.split(".").at(-1);
  const text = end - start > 56 || !plan.across ? `block ${number}` : number;
  plan.boxes.push({ stage: whole ?? stages.at(-1), text, u: [start, end], v: v.label, part: "label" });
  branches.forEach((stage, i) => {
    const room = (end - start) / branches.length;
    const middle = start + room * (i + 0.5);
    const name = stage.kind === "mlp" ? "MLP" : stage.kind === "attention" ? "attention" : stage.title;
    plan.boxes.push({ stage, text: name, u: [middle - NODE / 2, middle + NODE / 2], v: v.nodes, part: "node" });
    plan.loops.push({ stage, middle, reach: Math.min(room / 2, 30) });
  });
}
