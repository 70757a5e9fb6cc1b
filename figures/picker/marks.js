// Marks over a frame: points, boxes and the cross. `zoom`: pixels of the canvas per pixel of the video; `scale`: per pixel
// of the screen.

function drawPrompt(pen, entry, colour, chosen, zoom, scale) {
  const round = chosen ? 9 : 6;
  if (entry.box) outlined(pen, entry.box, zoom, colour, (chosen ? 3.5 : 2) * scale);
  for (const [x, y, on = 1] of entry.points ?? []) {
    const arm = (round - 4) * scale;
    pen.beginPath();
    pen.arc(x * zoom, y * zoom, round * scale, 0, 2 * Math.PI);
    pen.fillStyle = on ? colour : "#000";
    pen.fill();
    Object.assign(pen, { lineWidth: 2 * scale, strokeStyle: on ? "#000" : colour });
    pen.stroke();
    pen.beginPath();  // a plus on the object, a minus beside it
    pen.moveTo(x * zoom - arm, y * zoom); pen.lineTo(x * zoom + arm, y * zoom);
    if (on) { pen.moveTo(x * zoom, y * zoom - arm); pen.lineTo(x * zoom, y * zoom + arm); }
    pen.stroke();
  }
}

function outlined(pen, [left, top, right, bottom], zoom, colour, thick) {
  for (const [shade, wide] of [["#000", thick + 2], [colour, thick]]) {
    Object.assign(pen, { strokeStyle: shade, lineWidth: wide });
    pen.strokeRect(left * zoom, top * zoom, (right - left) * zoom, (bottom - top) * zoom);
  }
}

// radius: of the brush, in pixels of the video; 0 without one
function drawCross(pen, cross, radius, zoom, scale) {
  const [x, y, arm] = [cross[0] * zoom, cross[1] * zoom, 14 * scale];
  for (const [shade, wide] of [["#000", 4], ["#fff", 1.5]]) {
    Object.assign(pen, { strokeStyle: shade, lineWidth: wide * scale });
    pen.beginPath();
    pen.moveTo(x - arm, y); pen.lineTo(x + arm, y);
    pen.moveTo(x, y - arm); pen.lineTo(x, y + arm);
    pen.moveTo(x + radius * zoom, y); pen.arc(x, y, radius * zoom, 0, 2 * Math.PI);
    pen.stroke();
  }
}
