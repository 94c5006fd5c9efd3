// What users of dockerode do, told as one JSON object a line: node dockerode.js SOCKET IMAGE.tar
"use strict";
const Docker = require("dockerode");
const fs = require("fs");
const { PassThrough } = require("stream");

const docker = new Docker({ socketPath: process.argv[2] });
const tell = (step, value) => console.log(JSON.stringify({ step, value }));
const alone = { NetworkMode: "none" };

function collected(stream, tty) {
  // {stdout, stderr} of a stream that docker-modem demultiplexes
  const out = { stdout: "", stderr: "" };
  return new Promise((resolve, reject) => {
    const [stdout, stderr] = [new PassThrough(), new PassThrough()];
    stdout.on("data", (data) => (out.stdout += data));
    stderr.on("data", (data) => (out.stderr += data));
    stream.on("end", () => setImmediate(() => resolve(out)));
    stream.on("error", reject);
    if (tty) stream.on("data", (data) => (out.stdout += data));
    else docker.modem.demuxStream(stream, stdout, stderr);
  });
}

async function refused(promise) {
  try {
    await promise;
    return "nothing was refused";
  } catch (error) {
    return [error.statusCode, error.json && error.json.message];
  }
}

async function containers() {
  const container = await docker.createContainer({
    Image: "busybox", name: "node", Cmd: ["sh", "-c", "read x; echo got $x; echo bad >&2; exit 3"],
    OpenStdin: true, StdinOnce: true, Labels: { a: "b" }, HostConfig: alone,
  });
  const stream = await container.attach({
    stream: true, stdin: true, stdout: true, stderr: true, hijack: true,
  });
  const said = collected(stream);
  await container.start();
  stream.write("line\n");
  tell("attach", await said);
  tell("wait", await container.wait());
  tell("logs", (await container.logs({ stdout: true })).toString("latin1"));
  const found = await docker.listContainers({ all: true, filters: { label: ["a=b"] } });
  tell("list", found.map((c) => [c.Names, c.State, c.Image]));
  tell("again", await refused(docker.createContainer({ Image: "busybox", name: "node", HostConfig: alone })));
  await container.remove();
  tell("gone", await refused(container.inspect()));
}

async function execs() {
  const container = await docker.createContainer({
    Image: "busybox", Cmd: ["sleep", "100"], HostConfig: alone,
  });
  await container.start();
  const exec = await container.exec({
    Cmd: ["sh", "-c", "cat; echo end >&2; exit 4"], AttachStdin: true, AttachStdout: true,
    AttachStderr: true,
  });
  const stream = await exec.start({ hijack: true, stdin: true });
  const said = collected(stream);
  stream.end("through");
  tell("exec", await said);
  const shown = await exec.inspect();
  tell("exec inspect", [shown.Running, shown.ExitCode]);
  const terminal = await container.exec({ Cmd: ["tty"], AttachStdout: true, Tty: true });
  tell("tty", await collected(await terminal.start({ hijack: false, Tty: true }), true));
  tell("top", (await container.top()).Titles.slice(0, 2));
  const logs = await container.logs({ follow: true, stdout: true, stderr: true });
  const ended = new Promise((resolve) => logs.on("end", resolve));
  logs.resume();
  await container.kill();
  await ended;
  await container.remove({ force: true });
}

async function events() {
  const seen = [];
  const stream = await docker.getEvents({ filters: { event: ["create", "start", "die", "destroy"] } });
  stream.on("data", (data) =>
    data.toString().trim().split("\n").forEach((line) => seen.push(JSON.parse(line).Action)));
  // not AutoRemove: run() asks for the exit code after the start, when this container may be gone
  const [end, container] = await docker.run("busybox", ["true"], new PassThrough(), {
    HostConfig: alone,
  });
  await container.remove();
  while (!seen.includes("destroy")) await new Promise((resolve) => setTimeout(resolve, 20));
  stream.destroy();
  tell("run", [end.StatusCode, seen]);
}

async function images() {
  const loaded = await docker.loadImage(fs.createReadStream(process.argv[3]), { quiet: true });
  const lines = await new Promise((resolve, reject) =>
    docker.modem.followProgress(loaded, (error, out) => (error ? reject(error) : resolve(out))));
  tell("load", lines.map((line) => line.stream));
  const image = docker.getImage("busybox");
  await image.tag({ repo: "node", tag: "1" });
  tell("tags", (await image.inspect()).RepoTags);
  tell("remove", await docker.getImage("node:1").remove());
  tell("no image", await refused(docker.getImage("nosuch").inspect()));
}

async function main() {
  tell("ping", (await docker.ping()).toString());
  for (const part of [containers, execs, events, images]) await part();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
