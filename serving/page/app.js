"use strict";
// Everything the page does goes through the public API; there is nothing here that a script of yours could not do.

const $ = (id) => document.getElementById(id);
const optional = ["num_frames", "num_inference_steps", "guidance_scale", "seed"];
let model = null, current = null, watch = null, boxes = [];

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
  if (!models.length) { setTimeout(() => start().catch(say), 2000); $("model").textContent = "the checkpoint is being loaded …"; return; }
  model = models[0];
  const size = model.sizes[0].join(" × ");
  $("model").textContent = `${model.id}: ${size}, ${model.num_frames} frames at ${model.fps} per second`;
  for (const name of optional) if (model[name] !== undefined) $(name).placeholder = model[name];
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
  drawBoxes();
  await history();
}

function say(error) { $("problem").textContent = error ? error.message : ""; }

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  say();
  $("go").disabled = true;
  try {
    const form = new FormData();
    form.set("prompt", $("prompt").value);
    for (const name of optional) if ($(name).value !== "") form.set(name, $(name).value);
    const words = [...document.querySelectorAll("input[name=word]:checked")].map((box) => box.value);
    if (words.length) form.set("scene", words.join(","));
    if (boxes.length) form.set("boxes", JSON.stringify(boxes));
    if ($("file").files.length) form.set("input_reference", $("file").files[0]);
    const headers = { "Idempotency-Key": crypto.randomUUID ? crypto.randomUUID() : String(Math.random()) };
    show(await (await api("/v1/videos", { method: "POST", body: form, headers })).json());
  } catch (error) { say(error); } finally { $("go").disabled = false; }
});

function show(video) {
  current = video.id;
  $("current").hidden = false;
  $("player").hidden = $("download").hidden = $("preview").hidden = true;
  $("player").removeAttribute("src");
  update(video);
  if (watch) watch.abort();
  watch = new AbortController();
  follow(video.id, watch.signal).catch((error) => { if (error.name !== "AbortError") say(error); });
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
      if (!data || id !== current) continue;
      const value = JSON.parse(data);
      if (kind === "preview") { $("preview").src = `data:image/jpeg;base64,${value.jpeg}`; $("preview").hidden = false; }
      else update(value);
      if (kind === "done") { if (value.status === "completed") await play(id); await history(); return; }
    }
  }
}

function update(video) {
  $("progress").value = video.progress;
  const place = video.queue_position ? `, ${video.queue_position} before it` : "";
  const left = video.eta_s ? `, about ${Math.ceil(video.eta_s)} s left` : "";
  const steps = video.status === "in_progress" ? `, step ${video.steps_done} of ${video.num_steps}` : "";
  const reason = video.error ? `: ${video.error.message}` : "";
  $("status").textContent = `${video.status.replace("_", " ")}${place}${steps}${left}${reason} (seed ${video.seed})`;
  $("cancel").hidden = !["queued", "in_progress"].includes(video.status);
}

async function play(id) {
  const url = await file(`/v1/videos/${id}/content`);
  if (id !== current) return;
  $("player").src = $("download").href = url;
  $("download").download = `${id}.mp4`;
  $("player").hidden = $("download").hidden = false;
  $("preview").hidden = true;
  $("player").play().catch(() => {});
}

$("cancel").addEventListener("click", async () => {
  try { update(await (await api(`/v1/videos/${current}/cancel`, { method: "POST" })).json()); } catch (error) { say(error); }
});

async function history() {
  const videos = (await (await api("/v1/videos?limit=24")).json()).data;
  $("history").replaceChildren(...videos.map((video) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const image = document.createElement("img"), title = document.createElement("span"), note = document.createElement("small");
    image.alt = "";
    if (video.status === "completed") file(`/v1/videos/${video.id}/content?variant=thumbnail`).then((url) => { image.src = url; }).catch(() => {});
    title.textContent = video.prompt;
    note.textContent = `${video.status.replace("_", " ")} · seed ${video.seed}${video.scene ? " · " + video.scene : ""}`;
    button.type = "button";
    button.append(image, title, note);
    button.addEventListener("click", () => show(video));
    item.append(button);
    return item;
  }));
}

// Boxes: shares of width and height, as the API takes them.
function drawBoxes(extra) {
  const canvas = $("boxes"), pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#87a9c4"; pen.fillRect(0, 0, canvas.width, canvas.height / 2);
  pen.fillStyle = "#555"; pen.fillRect(0, canvas.height / 2, canvas.width, canvas.height / 2);
  pen.strokeStyle = "#ffb400"; pen.lineWidth = 3;
  for (const box of [...boxes, ...(extra ? [extra] : [])])
    pen.strokeRect(box.x1 * canvas.width, box.y1 * canvas.height, (box.x2 - box.x1) * canvas.width, (box.y2 - box.y1) * canvas.height);
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
$("clear").addEventListener("click", () => { boxes = []; drawBoxes(); });
$("key").addEventListener("change", () => start().catch(say));

start().catch(say);
