// The page: sends the form to the API, asks for the state of the videos, shows them. Texts of others become text
// nodes, never HTML. It loads nothing from elsewhere.
"use strict";

const SHOWN = 24; // videos that one press of "Earlier videos" adds; the API lists at most 100 at a time
const BUSY_MS = 1000, IDLE_MS = 10000; // between two questions: while a video is unfinished, and otherwise
const RESENT = 5; // a request that finds no server is sent again so often; its Idempotency-Key keeps it single
const ENDED = ["completed", "failed"];

const byId = (id) => document.getElementById(id);
const cards = new Map(); // id of a video -> its card
let shown = SHOWN;
let defaults = {};
let timer = 0, round = 0;

class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.param = error?.param;
  }
}

// ------------------------------------------------------------------------------------------------ the API

const token = {
  get: () => sessionStorage.getItem("token"),
  set: (value) => (value === null ? sessionStorage.removeItem("token") : sessionStorage.setItem("token", value)),
};

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token.get() !== null) headers.Authorization = `Bearer ${token.get()}`;
  const answer = await fetch(`v1/${path}`, { ...options, headers });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw new Refused(answer.status, body?.error);
}

const json = async (path, options) => (await call(path, options)).json();

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function insist(body) {
  const headers = { "Idempotency-Key": newKey() };
  for (let number = 1; ; number++) {
    try {
      return await json("videos", { method: "POST", body, headers });
    } catch (error) {
      if (error instanceof Refused || number === RESENT) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * number));
    }
  }
}

// ------------------------------------------------------------------------------------------------ the form

function fields() {
  const found = new FormData(byId("form"));
  for (const [name, value] of [...found]) {
    const isEmpty = value instanceof File ? value.size === 0 : value === "" && name !== "negative_prompt";
    if (isEmpty) found.delete(name);
  }
  const [width, height] = [byId("width").value, byId("height").value];
  if (width || height) {
    const [usualWidth, usualHeight] = defaults.size.split("x");
    found.set("size", `${width || usualWidth}x${height || usualHeight}`);
  }
  return found;
}

async function send(event) {
  event.preventDefault();
  say("fault", "");
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  byId("send").disabled = true;
  try {
    await insist(fields());
    await refresh();
  } catch (error) {
    if (error.status === 401) return start();
    const field = byId(error.param === "size" ? "width" : error.param);
    field?.setAttribute("aria-invalid", "true");
    say("fault", error instanceof Refused ? error.message : "The server does not answer; nothing is known of the request.");
  } finally {
    byId("send").disabled = false;
  }
}

function useAgain(video) {
  const [width, height] = video.size.split("x");
  const values = { ...video, width, height };
  const names = ["prompt", "negative_prompt", "width", "height", "frames", "num_inference_steps", "guidance_scale", "seed"];
  for (const name of names) byId(name).value = values[name];
  byId("prompt").focus();
}

// ------------------------------------------------------------------------------------------------ the videos

async function videos() {
  const found = [];
  for (let after = ""; found.length < shown; ) {
    const page = await json(`videos?limit=${Math.min(100, shown - found.length)}${after}`);
    found.push(...page.data);
    if (!page.has_more) return [found, false];
    after = `&after=${encodeURIComponent(page.last_id)}`;
  }
  return [found, true];
}

async function refresh() {
  const mine = ++round;
  clearTimeout(timer);
  let wait = IDLE_MS;
  try {
    const [found, more] = await videos();
    if (mine !== round) return; // a later one is on its way
    say("connection", "");
    show(found);
    byId("more").hidden = !more;
    if (found.some((video) => !ENDED.includes(video.status))) wait = BUSY_MS;
  } catch (error) {
    if (error.status === 401) return start();
    if (mine !== round) return;
    say("connection", `${error instanceof Refused ? error.message : "The server does not answer."} Asking again ...`);
    wait = 3 * BUSY_MS;
  }
  if (!document.hidden) timer = setTimeout(refresh, wait);
}

function show(found) {
  const ids = new Set(found.map((video) => video.id));
  for (const [id, card] of cards) {
    if (!ids.has(id)) {
      card.close();
      cards.delete(id);
    }
  }
  let before = null;
  for (const video of found) {
    const isNew = !cards.has(video.id);
    if (isNew) cards.set(video.id, new Card(video));
    const card = cards.get(video.id);
    const place = before === null ? byId("videos").firstChild : before.nextSibling;
    if (card.root !== place) byId("videos").insertBefore(card.root, place);
    card.update(video);
    before = card.root;
  }
  byId("none").hidden = found.length > 0;
}

class Card {
  constructor(video) {
    this.root = byId("video").content.firstElementChild.cloneNode(true);
    this.root.id = video.id;
    this.address = null; // of the picture that is shown
    this.wasBusy = !ENDED.includes(video.status);
    this.part(".prompt").textContent = video.prompt;
    const does = { play: () => this.play(), cancel: () => this.end("POST", "/cancel"), again: () => useAgain(this.video), remove: () => this.remove() };
    for (const [name, action] of Object.entries(does)) this.action(name).addEventListener("click", action);
  }

  part = (selector) => this.root.querySelector(selector);
  action = (name) => this.part(`[data-does=${name}]`);

  update(video) {
    const isOther = this.video?.status !== video.status;
    this.video = video;
    this.part(".state").textContent = stateOf(video);
    this.part(".facts").textContent = factsOf(video);
    const fault = this.part(".fault");
    fault.textContent = [video.error?.code === "cancelled" ? null : video.error?.message, video.warning].filter(Boolean).join(" ");
    fault.hidden = fault.textContent === "";
    const bar = this.part("progress");
    bar.hidden = video.status !== "in_progress";
    bar.value = video.progress;
    this.action("cancel").hidden = ENDED.includes(video.status);
    if (isOther) {
      this.root.dataset.status = video.status;
      if (video.status === "completed") this.finish();
    }
    if (video.status === "in_progress") this.look();
  }

  async look() { // how the first frame looks by now; the server makes this picture only if it is asked for
    const picture = await this.blob("thumbnail").catch(() => null);
    if (picture !== null && this.video.status === "in_progress") this.put("img", picture, "preview of the first frame");
  }

  async finish() {
    const isImage = this.video.frames === 1;
    const picture = await this.blob("thumbnail").catch(() => null);
    if (picture !== null) this.put("img", picture, "first frame");
    this.action("play").hidden = isImage;
    const save = this.action("save");
    save.download = `${this.video.id}.${isImage ? "png" : "mp4"}`;
    save.hidden = false;
    save.href = `v1/videos/${this.video.id}/content`;
    if (token.get() !== null) save.addEventListener("click", (event) => this.save(event)); // a link sends no token
    if (this.wasBusy && !isImage) this.play();
  }

  async play() {
    const movie = document.createElement("video");
    Object.assign(movie, { controls: true, loop: true, muted: true, playsInline: true, autoplay: true });
    if (token.get() === null) movie.src = `v1/videos/${this.video.id}/content`;
    else movie.src = this.keep(await this.blob("video"));
    this.part(".picture").replaceChildren(movie);
    this.action("play").hidden = true;
  }

  async save(event) {
    if (this.action("save").href.startsWith("blob:")) return;
    event.preventDefault();
    this.action("save").href = URL.createObjectURL(await this.blob("video"));
    this.action("save").click();
  }

  async blob(variant) {
    return (await call(`videos/${this.video.id}/content?variant=${variant}`)).blob();
  }

  put(kind, blob, text) {
    const shown = this.part(".picture").firstElementChild;
    const picture = shown?.localName === kind ? shown : document.createElement(kind);
    picture.alt = text;
    picture.src = this.keep(blob);
    if (picture !== shown) this.part(".picture").replaceChildren(picture);
  }

  keep(blob) { // one address at a time, so that the page does not grow
    if (this.address !== null) URL.revokeObjectURL(this.address);
    return (this.address = URL.createObjectURL(blob));
  }

  async end(method, path) {
    try {
      await json(`videos/${this.video.id}${path}`, { method });
    } catch (error) {
      if (error.status !== 404) say("connection", error.message);
    }
    await refresh();
  }

  async remove() {
    if (confirm("Delete this video and its file?")) await this.end("DELETE", "");
  }

  close() {
    this.root.remove();
    if (this.address !== null) URL.revokeObjectURL(this.address);
  }
}

function stateOf(video) {
  if (video.status === "queued") {
    const before = video.queue_position - 1;
    return before > 0 ? `Waits; ${before} before it.` : "Waits; it is the next one.";
  }
  if (video.status === "in_progress") {
    const begun = video.progress >= 99 ? "decoding" : `${video.progress} %`;
    return `In progress: ${begun}, begun at ${new Date(1000 * video.started_at).toLocaleTimeString()}.`;
  }
  if (video.status === "failed") return video.error?.code === "cancelled" ? "Cancelled." : "Failed.";
  return `Completed in ${Math.max(0, video.completed_at - video.started_at)} s.`;
}

function factsOf(video) {
  const frames = video.frames === 1 ? "1 frame" : `${video.frames} frames`;
  return `seed ${video.seed}, ${frames}, ${video.size}, ${video.num_inference_steps} steps, guidance ${video.guidance_scale}`;
}

// ------------------------------------------------------------------------------------------------ start

function say(id, text) {
  byId(id).textContent = text;
  byId(id).hidden = text === "";
}

async function start() {
  try {
    const model = (await json("models")).data[0];
    defaults = model.defaults;
    byId("model").textContent = `${model.id}, ${model.frames_per_second} frames a second`;
    const [width, height] = defaults.size.split("x");
    for (const [name, value] of Object.entries({ ...defaults, width, height })) {
      if (name === "negative_prompt") byId(name).value ||= value;
      else if (byId(name)) byId(name).placeholder = value;
    }
    byId("images").hidden = model.images.length === 0;
    byId("access").hidden = true;
    byId("main").hidden = false;
    say("connection", "");
    await refresh();
  } catch (error) {
    if (error.status !== 401) {
      say("connection", `${error instanceof Refused ? error.message : "The server does not answer."} Asking again ...`);
      timer = setTimeout(start, 3 * BUSY_MS);
      return;
    }
    say("refused", token.get() === null ? "" : error.message);
    token.set(null);
    byId("main").hidden = true;
    byId("access").hidden = false;
    byId("token").focus();
  }
}

byId("form").addEventListener("submit", send);
byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(byId("token").value.trim());
  byId("token").value = "";
  start();
});
byId("more").addEventListener("click", () => {
  shown += SHOWN;
  refresh();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !byId("main").hidden) refresh();
});
start();
