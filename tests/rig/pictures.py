"""Real pictures for comparing classifiers: photos, frames of real videos, cuts of the photos.

They come from the pip package scikit-image, from Debian's opencv-doc and from the sample clip.
Nothing of them is kept in the repository but the clip, whose licences are known.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np

from edgemm.errors import SourceError

OPENCV = Path("/usr/share/doc/opencv-doc")
CLIP = Path(__file__).parents[2] / "samples/clip/clip.mp4"
PEDESTRIANS = OPENCV / "examples/data/vtest.avi"
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]

# Photos only: no drawings, logos, rendered scenes, test patterns or pages of text.
SKIMAGE_PHOTOS = """
    astronaut.png brick.png camera.png chelsea.png clock_motion.png coffee.png coins.png grass.png
    gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png motorcycle_right.png
    retina.jpg rocket.jpg
"""
OPENCV_PHOTOS = {
    "examples/data": """
        aero1.jpg aero3.jpg aloeL.jpg aloeR.jpg apple.jpg baboon.jpg basketball1.png
        basketball2.png board.jpg box.png box_in_scene.png building.jpg butterfly.jpg cards.png
        chicky_512.png ela_original.jpg fruits.jpg graf1.png graf3.png home.jpg left.jpg left01.jpg
        left05.jpg left09.jpg left14.jpg leuvenA.jpg leuvenB.jpg licenseplate_motion.jpg messi5.jpg
        orange.jpg right.jpg right03.jpg right11.jpg rubberwhale1.png rubberwhale2.png smarties.png
        squirrel_cls.jpg stuff.jpg
    """,
    "examples/hfs/data": "000.jpg 001.jpg 002.jpg",
    "examples/text": """
        scenetext01.jpg scenetext02.jpg scenetext03.jpg scenetext04.jpg scenetext05.jpg
        scenetext06.jpg
    """,
    "examples/alphamat/input_images": "plant.jpg",
    "examples/dnn_superres": "butterfly.png",
    "examples/fuzzy": "input.png",
    "examples/reg": "home.png",
    "opencv4/html": """
        11_demo.jpg 230501201_1.jpg 4_barcodes.jpg Back_Projection1_Source_Image.jpg
        Back_Projection_Theory0.jpg Background_Subtraction_Tutorial_frame.jpg
        Bounding_Rects_Circles_Source_Image.jpg Canny_Detector_Tutorial_Original_Image.jpg
        Histogram_Calculation_Original_Image.jpg Hough_Circle_Tutorial_Theory_0.jpg
        Laplace_Operator_Tutorial_Original_Image.jpg Morphology_1_Tutorial_Original_Image.jpg
        Pyramids_Tutorial_Original_Image.jpg Remap_Tutorial_Original_Image.jpg
        Remap_Tutorial_Theory_0.jpg Template_Matching_Original_Image.jpg
        Threshold_inRange_Tutorial_Result_input.jpeg aero_det.jpg astra_color.jpg bicubicOutput.jpg
        boat.jpg bus_det.jpg cat_det.jpg chaxis.jpg chocclusion.jpg detect_test2.jpg
        diamondsaxis.jpg dualCircles.jpg feature_building.jpg fileListImage.jpg fusion_mertens.jpg
        gbaxis.jpg homography_pose_estimation.jpg newspaper.jpg opencv_bus_res.jpg
        opticalflow_lk.jpg person_multi_det.jpg singlemarkersoriginal.jpg space_shuttle.jpg
        studentsSample_input.jpg yolo.jpg
    """,
}


def real_pictures(directory: Path, count: int = 240) -> list[Path]:
    """`count` pictures in `directory`: all photos, then frames, then cuts of photos.

    The names begin with `photo`, `frame` or `cut`. Of what the photos leave, at most half are
    frames (two thirds of the sample clip, one third of a street with pedestrians, evenly spread)
    and the rest are cuts: 50 to 90 % of a photo's width and height, every second one mirrored. All
    are the same every time. Raises SourceError when a package that has the pictures is missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    photos = [_copy(path, directory) for path in photo_files()][:count]
    places = (count - len(photos)) // 2
    frames = _frames(CLIP, 2 * places // 3, directory)
    frames += _frames(PEDESTRIANS, places - 2 * places // 3, directory)
    cuts = _cuts(photos, count - len(photos) - len(frames), directory)
    return photos + frames + cuts


def kinds(paths: Sequence[Path]) -> dict[str, int]:
    """How many of the pictures are a `photo`, a `frame` or a `cut`."""
    return dict(Counter(path.name.split("-")[0] for path in paths))


def photo_files() -> list[Path]:
    """The installed photos. Raises SourceError that names the package of the first missing one."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise SourceError("scikit-image is missing", hint="run: pip install scikit-image")
    paths = [Path(package.origin).parent / "data" / name for name in SKIMAGE_PHOTOS.split()]
    for folder, names in OPENCV_PHOTOS.items():
        paths += [OPENCV / folder / name for name in names.split()]
    for path in paths:
        if not path.is_file():
            raise SourceError(f"no photo {path}", hint="run: apt-get install opencv-doc")
    return paths


def _copy(path: Path, directory: Path) -> Path:
    target = directory / f"photo-{path.parent.name}-{path.name}"
    shutil.copyfile(path, target)
    return target


def _frames(video: Path, count: int, directory: Path) -> list[Path]:
    """`count` frames at equal distances, as JPEG."""
    if not video.is_file():
        raise SourceError(f"no video {video}", hint="run: apt-get install opencv-doc")
    paths: list[Path] = []
    with av.open(str(video)) as container:
        total = sum(packet.dts is not None for packet in container.demux(video=0))
        container.seek(0)
        wanted = set(np.linspace(0, total - 1, count).astype(int).tolist())
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                path = directory / f"frame-{video.stem}-{index:04d}.jpg"
                cv2.imwrite(str(path), frame.to_ndarray(format="bgr24"), JPEG)
                paths.append(path)
    return paths


def _cuts(photos: list[Path], count: int, directory: Path) -> list[Path]:
    return list(islice(_endless_cuts(photos, directory), count))


def _endless_cuts(photos: list[Path], directory: Path) -> Iterator[Path]:
    chance = np.random.default_rng(2)
    number = 0
    while photos:
        for photo in photos:
            picture = np.asarray(cv2.imread(str(photo), cv2.IMREAD_COLOR))
            cut = _cut(picture, chance)
            path = directory / f"cut-{number:04d}-{photo.stem}.jpg"
            cv2.imwrite(str(path), cut[:, ::-1] if number % 2 else cut, JPEG)
            yield path
            number += 1


def _cut(picture: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    height, width = (round(side * chance.uniform(0.5, 0.9)) for side in picture.shape[:2])
    top = int(chance.integers(0, picture.shape[0] - height + 1))
    left = int(chance.integers(0, picture.shape[1] - width + 1))
    return picture[top : top + height, left : left + width]
