"""What a page does for the figures in it."""

# a figure that is wider than the window gets smaller as a whole: nothing is cut, down to where letters cannot be read
FITTING = """
function fit() {
  for (const box of document.querySelectorAll(".drawn")) {
    const figure = box.querySelector(".js-plotly-plot");
    if (!figure) continue;
    const by = Math.min(1, Math.max(0.6, box.clientWidth / figure.offsetWidth));
    figure.style.transformOrigin = "0 0";
    figure.style.transform = by < 1 ? `scale(${by})` : "";
    figure.style.marginRight = `${-(1 - by) * figure.offsetWidth}px`;
    box.style.overflowX = by * figure.offsetWidth > box.clientWidth + 1 ? "" : "hidden";
    box.style.height = by < 1 ? `${Math.ceil(by * figure.offsetHeight) + 16}px` : "";
  }
}
addEventListener("load", fit); addEventListener("resize", fit);
"""
