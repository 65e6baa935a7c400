"use strict";
// Everything the page does goes through the public API; there is nothing here that a script of yours could not do.

const $ = (id) => document.getElementById(id);
const numbers = ["num_frames", "num_inference_steps", "guidance_scale", "seed"];
const unfinished = ["queued", "in_progress"];
let model = null, current = null, watching = null, boxes = [], backdrop = null, urls = [];

async function api(path, options = {}) {
  const key = $("key").value;
  const headers = { ...(options.headers || {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  const wait = answer.headers.get("retry-after");
  throw new Error((body?.error?.message || `the service answered ${answer.status}`) + (wait ? ` (in ${wait} s)` : ""));
}

async function file(path) {
  return URL.createObjectURL(await (await api(path)).blob());
}

async function start() {
  const models = (await (await api("/v1/models")).json()).data;
  if (!models.length) {
    $("model").textContent = "the checkpoint is being loaded …";
    setTimeout(() => start().catch(say), 2000);
    return;
  }
  model = models[0];
  const seconds = (model.num_frames / model.fps).toFixed(1).replace(/\.0$/, "");
  $("model").textContent = `${model.id} · ${model.sizes[0].join(" × ")} · ${seconds} s at ${Math.round(model.fps)} frames per second`;
  $("scene").hidden = !model.scenes.length;
  $("words").replaceChildren(...model.scenes.map((word) => {
    const label = document.createElement("label");
    label.innerHTML = `<input type="checkbox" name="word"> <span></span>`;
    label.querySelector("input").value = word;
    label.querySelector("span").textContent = word;
    return label;
  }));
  $("picture").hidden = !(model.fields || []).includes("boxes");
  $("upload").hidden = !(model.inputs || []).includes("input_reference");
  $("style").hidden = !(model.backbones || []).length;
  offerStages();
  $("backbone").replaceChildren(new Option("the checkpoint's own", ""), ...(model.backbones || []).map((name) => new Option(name)));
  drawBoxes();
  await history();
}

// From a few frames at once to all that the checkpoint can do: each choice leaves out stages at the end.
function offerStages() {
  const without = model.without || {}, parts = ["interpolation", "upsampler"].filter((name) => name in without);
  const names = { interpolation: "smooth", upsampler: "large" };
  const choices = [...parts.keys(), parts.length].map((kept) => {
    const left = parts.slice(kept), stages = model.stages.filter((name) => !left.includes(name));
    const label = kept === 0 ? "quick: few frames" : parts.slice(0, kept).map((name) => names[name]).join(" and ");
    return new Option(label, JSON.stringify(stages), false, kept === parts.length);
  });
  $("finish").hidden = !parts.length;
  $("stages").replaceChildren(...choices);
  hint();
}

function hint() {
  const kept = JSON.parse($("stages").value || "[]");
  const left = Object.entries(model.without || {}).filter(([name]) => !kept.includes(name)).map(([, changes]) => changes);
  const offer = Object.assign({}, model, ...($("finish").hidden ? [] : left));
  for (const name of numbers) if (offer[name] !== undefined) $(name).placeholder = offer[name];
}

function say(error) { $("problem").textContent = error ? error.message : ""; }

function words() { return [...document.querySelectorAll("input[name=word]:checked")].map((word) => word.value); }

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  say();
  $("go").disabled = true;
  try {
    const form = new FormData();
    form.set("prompt", $("prompt").value);
    for (const name of numbers) if ($(name).value !== "") form.set(name, $(name).value);
    if (words().length) form.set("scene", words().join(","));
    if (boxes.length) form.set("boxes", JSON.stringify(boxes));
    if ($("stages").selectedIndex < $("stages").length - 1) form.set("stages", $("stages").value);
    if ($("backbone").value) form.set("backbone", $("backbone").value);
    if ($("file").files.length) form.set("input_reference", $("file").files[0]);
    const headers = { "Idempotency-Key": crypto.randomUUID ? crypto.randomUUID() : String(Math.random()) };
    show(await (await api("/v1/videos", { method: "POST", body: form, headers })).json());
    await history();
  } catch (error) { say(error); } finally { $("go").disabled = false; }
});

function show(video) {
  current = video;
  $("state").hidden = false;
  $("empty").hidden = $("player").hidden = $("download").hidden = $("preview").hidden = true;
  $("player").removeAttribute("src");
  $("player").onended = null;
  $("player").loop = true;
  update(video);
  mark();
  if (watching) watching.abort();
  watching = new AbortController();
  follow(video.id, watching.signal).catch((error) => { if (error.name !== "AbortError") say(error); });
}

// EventSource cannot send a key, so the stream is read by hand.
async function follow(id, signal) {
  const reader = (await api(`/v1/videos/${id}/events`, { signal })).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const kind = /^event: (.*)$/m.exec(event)?.[1], data = /^data: (.*)$/m.exec(event)?.[1];
      if (!data || id !== current.id) continue;
      const value = JSON.parse(data);
      if (kind === "preview") preview(value);
      else update(value);
      if (kind === "done") { if (value.status === "completed") await play(id); await history(); return; }
    }
  }
}

function preview(event) {
  $("preview").src = `data:image/jpeg;base64,${event.jpeg}`;
  $("preview").hidden = !$("player").hidden;
}

function update(video) {
  if (video.status === "deleted") return;
  current = video;
  $("progress").value = video.progress;
  $("progress").hidden = video.status === "completed";
  const place = video.queue_position ? `, ${video.queue_position} before it` : "";
  const left = video.eta_s ? `, about ${duration(video.eta_s)} left` : "";
  const steps = video.status === "in_progress" ? `, step ${video.steps_done} of ${video.num_steps}` : "";
  const reason = video.error ? `: ${video.error.message}` : "";
  $("status").textContent = `${video.status.replace("_", " ")}${place}${steps}${left}${reason} (seed ${video.seed})`;
  const runs = unfinished.includes(video.status);
  $("cancel").hidden = !runs;
  $("again").hidden = runs;
  $("watch").hidden = !(runs && video.segments > 0);
  $("watch").textContent = `Watch the first ${video.segments > 1 ? `${video.segments} parts` : "part"}`;
}

function duration(seconds) {
  return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
}

async function play(id) {
  const url = await file(`/v1/videos/${id}/content`);
  if (id !== current.id) return;
  $("player").onended = null;
  $("player").loop = true;
  $("player").src = $("download").href = url;
  $("download").download = `${id}.mp4`;
  $("player").hidden = $("download").hidden = false;
  $("preview").hidden = true;
  $("player").play().catch(() => {});
}

// A long video can be watched from its beginning while the rest is being made.
async function playPart(id, index) {
  const url = await file(`/v1/videos/${id}/content?variant=segment&index=${index}`);
  if (id !== current.id || current.status === "completed") return;
  $("player").loop = false;
  $("player").src = url;
  $("player").hidden = false;
  $("preview").hidden = true;
  $("player").onended = () => playPart(id, index + 1 < current.segments ? index + 1 : 0).catch(say);
  $("player").play().catch(() => {});
}

$("watch").addEventListener("click", () => playPart(current.id, 0).catch(say));
$("cancel").addEventListener("click", async () => {
  try { update(await (await api(`/v1/videos/${current.id}/cancel`, { method: "POST" })).json()); await history(); } catch (error) { say(error); }
});
$("again").addEventListener("click", () => {
  $("prompt").value = current.prompt;
  for (const name of numbers) $(name).value = current[name] ?? "";
  const scene = (current.scene || "").split(",");
  for (const word of document.querySelectorAll("input[name=word]")) word.checked = scene.includes(word.value);
  boxes = (current.boxes || []).map(([x1, y1, x2, y2]) => ({ x1, y1, x2, y2 }));
  drawBoxes();
  $("prompt").focus();
});

async function history() {
  const videos = (await (await api("/v1/videos?limit=24")).json()).data;
  const thumbnails = await Promise.all(videos.map((video) => video.status !== "completed" ? null
    : file(`/v1/videos/${video.id}/content?variant=thumbnail`).catch(() => null)));
  urls.forEach((url) => URL.revokeObjectURL(url));
  urls = thumbnails.filter(Boolean);
  $("past").hidden = !videos.length;
  $("history").replaceChildren(...videos.map((video, index) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const picture = document.createElement(thumbnails[index] ? "img" : "i");
    const title = document.createElement("span"), note = document.createElement("small");
    if (thumbnails[index]) { picture.src = thumbnails[index]; picture.alt = ""; } else picture.textContent = video.status.replace("_", " ");
    title.textContent = video.prompt;
    note.textContent = [`${Number(video.seconds).toFixed(1)} s`, video.scene, `seed ${video.seed}`].filter(Boolean).join(" · ");
    button.type = "button";
    button.dataset.id = video.id;
    button.append(picture, title, note);
    button.addEventListener("click", () => { show(video); scrollTo({ top: 0, behavior: "smooth" }); });
    item.append(button);
    return item;
  }));
  mark();
  const latest = thumbnails.find(Boolean);
  if (latest && !$("picture").hidden) {
    const image = new Image();
    image.onload = () => { backdrop = image; drawBoxes(); };
    image.src = latest;
  }
}

function mark() {
  for (const button of document.querySelectorAll("#history button")) button.classList.toggle("on", button.dataset.id === current?.id);
}

// Boxes: shares of width and height, as the API takes them. Behind them: the latest video's first frame, or a road.
function drawBoxes(extra) {
  const canvas = $("boxes"), pen = canvas.getContext("2d"), { width, height } = canvas;
  if (backdrop) pen.drawImage(backdrop, 0, 0, width, height);
  else drawRoad(pen, width, height, words().includes("night"));
  pen.lineWidth = 3;
  pen.font = "600 18px system-ui, sans-serif";
  [...boxes, ...(extra ? [extra] : [])].forEach((box, index) => {
    const [x, y, w, h] = [box.x1 * width, box.y1 * height, (box.x2 - box.x1) * width, (box.y2 - box.y1) * height];
    pen.fillStyle = "#ff7a4540"; pen.fillRect(x, y, w, h);
    pen.strokeStyle = "#ff7a45"; pen.strokeRect(x, y, w, h);
    pen.fillStyle = "#ff7a45"; pen.fillRect(x, y, 26, 24);
    pen.fillStyle = "#1b0d05"; pen.fillText(index + 1, x + 8, y + 18);
  });
  $("count").textContent = boxes.length ? `${boxes.length} vehicle${boxes.length > 1 ? "s" : ""}` : "none placed: the model decides";
  $("clear").hidden = !boxes.length;
}

function drawRoad(pen, width, height, night) {
  const horizon = 0.45 * height, shape = (colour, ...points) => {
    pen.fillStyle = colour; pen.beginPath();
    points.forEach(([x, y]) => pen.lineTo(x * width, y * height));
    pen.fill();
  };
  const sky = pen.createLinearGradient(0, 0, 0, horizon);
  sky.addColorStop(0, night ? "#0a0f1f" : "#7fa8cf"); sky.addColorStop(1, night ? "#27304a" : "#dbe6ee");
  pen.fillStyle = sky; pen.fillRect(0, 0, width, horizon);
  pen.fillStyle = night ? "#1b2420" : "#8c9a74"; pen.fillRect(0, horizon, width, height - horizon);
  shape(night ? "#24262b" : "#6d6f73", [0.485, 0.45], [0.515, 0.45], [0.98, 1], [0.02, 1]);
  for (let near = 0.08; near < 1; near *= 1.7) {
    const far = near * 1.3, y = (share) => 0.45 + 0.55 * share, half = 0.006;
    shape(night ? "#a5a28f" : "#f1efe6", [0.5 - half * near, y(near)], [0.5 + half * near, y(near)], [0.5 + half * far, y(far)], [0.5 - half * far, y(far)]);
  }
}

let corner = null;
function at(event) {
  const frame = $("boxes").getBoundingClientRect();
  const share = (value, start, length) => Math.min(1, Math.max(0, (value - start) / length));
  return [share(event.clientX, frame.left, frame.width), share(event.clientY, frame.top, frame.height)];
}
function boxTo(event) {
  const [x, y] = at(event);
  return { x1: Math.min(corner[0], x), y1: Math.min(corner[1], y), x2: Math.max(corner[0], x), y2: Math.max(corner[1], y) };
}
$("boxes").addEventListener("pointerdown", (event) => { corner = at(event); });
$("boxes").addEventListener("pointermove", (event) => { if (corner) drawBoxes(boxTo(event)); });
addEventListener("pointerup", (event) => {
  if (!corner) return;
  const box = boxTo(event);
  if (box.x2 - box.x1 > 0.01 && box.y2 - box.y1 > 0.01) boxes.push(box);
  corner = null;
  drawBoxes();
});
$("boxes").addEventListener("keydown", (event) => { if (event.key === "Backspace" || event.key === "Delete") { boxes.pop(); drawBoxes(); } });
$("clear").addEventListener("click", () => { boxes = []; drawBoxes(); });
$("stages").addEventListener("change", hint);
$("words").addEventListener("change", () => drawBoxes());
$("key").addEventListener("change", () => start().catch(say));

start().catch(say);
