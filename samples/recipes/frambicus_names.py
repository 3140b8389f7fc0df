"""Which emoji are objects that a scene may show, and what a caption calls them.

One entry is a label of emojibase-data, or `label=noun` where people say another word; entries stand between semicolons.
Several drawings may share a noun (a dog and a dog's face). What is no single object (places, faces, signs, clock faces,
phases of the moon), what looks like another, and what is a religious sign is left out.
"""

from __future__ import annotations

_ANIMALS = """
monkey face=monkey; monkey; gorilla; orangutan; dog face=dog; dog; guide dog=dog; service dog=dog; poodle; wolf;
fox; raccoon; cat face=cat; cat; black cat=cat; lion; tiger face=tiger; tiger; leopard; horse face=horse; horse;
moose; donkey; unicorn; zebra; deer; bison; cow face=cow; cow; ox; water buffalo=buffalo; pig face=pig; pig; boar;
ram; ewe=sheep; goat; camel; two-hump camel=camel; llama; giraffe; elephant; mammoth; rhinoceros;
hippopotamus=hippo; mouse face=mouse; mouse; rat; hamster; rabbit face=rabbit; rabbit; chipmunk=squirrel; beaver;
hedgehog; bat; bear; polar bear; koala; panda; sloth; otter; skunk; kangaroo; badger; turkey; chicken; rooster;
hatching chick=chick; baby chick=chick; front-facing baby chick=chick; bird; black bird=bird; penguin; dove; eagle;
duck; swan; owl; dodo; feather; flamingo; peacock; parrot; goose; frog; crocodile; turtle; lizard; snake;
dragon face=dragon; dragon; sauropod=dinosaur; T-Rex=dinosaur; spouting whale=whale; whale; dolphin; seal; fish;
tropical fish=fish; blowfish; shark; octopus; spiral shell=shell; jellyfish; crab; lobster; shrimp; squid; oyster;
snail; butterfly; ant; honeybee=bee; beetle; lady beetle=ladybug; cricket; cockroach; spider; scorpion; mosquito;
fly; worm; bouquet=bouquet of flowers; white flower=flower; blossom=flower; hibiscus=flower; rose; sunflower; tulip;
lotus; seedling; potted plant; evergreen tree=tree; deciduous tree=tree; palm tree; cactus; four leaf clover=clover;
maple leaf=leaf; fallen leaf=leaf; mushroom; nest with eggs=nest; paw prints=paw print
"""
_FOOD = """
grapes; melon; watermelon; tangerine=orange; lemon; banana; pineapple; mango; red apple=apple; green apple=apple;
pear; peach; cherries; strawberry; blueberries; kiwi fruit=kiwi; tomato; olive; coconut; avocado; eggplant; potato;
carrot; ear of corn=corn; hot pepper; bell pepper; cucumber; leafy green=lettuce; broccoli; garlic; onion;
peanuts=peanut; chestnut; pea pod; bread; croissant; baguette bread=baguette; pretzel; bagel;
pancakes=stack of pancakes; waffle; cheese wedge=cheese; meat on bone=meat; poultry leg=chicken leg;
cut of meat=steak; bacon; hamburger; french fries; pizza=slice of pizza; hot dog; sandwich; taco; burrito; egg;
cooking=frying pan; pot of food=pot; bowl with spoon=bowl; green salad=salad; popcorn; butter; canned food=can;
rice ball; cooked rice=bowl of rice; spaghetti; sushi; dumpling; fortune cookie; takeout box; oden=skewer;
soft ice cream=ice cream cone; ice cream=bowl of ice cream; doughnut; cookie; birthday cake=cake;
shortcake=piece of cake; cupcake; pie; chocolate bar; candy; lollipop; custard; honey pot=honey jar; baby bottle;
glass of milk; hot beverage=cup; teapot; teacup without handle=cup; bottle with popping cork=bottle; wine glass;
cocktail glass=cocktail; tropical drink=cocktail; beer mug; tumbler glass=glass; cup with straw=paper cup;
beverage box=juice box; ice=ice cube; chopsticks; spoon; kitchen knife=knife; jar; amphora=vase
"""
_TRAVEL = """
globe showing Europe-Africa=globe; globe showing Americas=globe; globe showing Asia-Australia=globe; compass;
volcano; mountain; snow-capped mountain=mountain; brick; rock; wood=log; hut; house; house with garden=house;
castle; Japanese castle=castle; fountain; tent; circus tent=tent; carousel horse; playground slide=slide;
ferris wheel; locomotive=steam train; high-speed train=train; bullet train=train; train; bus; oncoming bus=bus;
trolleybus=bus; minibus=van; ambulance; fire engine=fire truck; police car; oncoming police car=police car; taxi;
oncoming taxi=taxi; automobile=car; oncoming automobile=car; sport utility vehicle=car; racing car; pickup truck;
delivery truck=truck; articulated lorry=truck; tractor; motorcycle; motor scooter=scooter;
manual wheelchair=wheelchair; motorized wheelchair=wheelchair; auto rickshaw=rickshaw; bicycle; kick scooter;
skateboard; roller skate; fuel pump=gas pump; wheel; horizontal traffic light=traffic light;
vertical traffic light=traffic light; stop sign; anchor; ring buoy=lifebuoy; sailboat; canoe; speedboat;
motor boat=speedboat; ship; passenger ship=ship; ferry=ship; airplane; small airplane=airplane; parachute;
helicopter; satellite; rocket; flying saucer; luggage=suitcase; hourglass done=hourglass;
hourglass not done=hourglass; watch; alarm clock; mantelpiece clock=clock; stopwatch; crescent moon=moon;
full moon=moon; sun; sun with face=sun; ringed planet=planet; star; glowing star=star; cloud; umbrella;
umbrella with rain drops=umbrella; closed umbrella=umbrella; rainbow; snowflake; snowman;
snowman without snow=snowman; fire=flame; droplet=drop of water; thermometer
"""
_ACTIVITIES = """
jack-o-lantern=pumpkin; Christmas tree; firecracker; balloon; party popper; wrapped gift=gift; ticket; trophy;
sports medal=medal; military medal=medal; soccer ball; baseball; basketball; volleyball; american football=football;
rugby football=rugby ball; tennis=tennis racket; flying disc=frisbee; boxing glove; fishing pole=fishing rod;
diving mask; skis; sled; ice skate; bullseye=target; yo-yo; kite; water pistol=water gun; pool 8 ball=billiard ball;
crystal ball; magic wand; video game=game controller; joystick; slot machine; game die=die; puzzle piece;
teddy bear; nesting dolls=nesting doll; chess pawn; artist palette=palette; thread=spool of thread;
yarn=ball of yarn; ribbon; red envelope=envelope; mirror ball
"""
_OBJECTS = """
glasses; sunglasses; goggles; lab coat=coat; coat; safety vest=vest; necktie=tie; t-shirt; jeans; scarf; gloves;
socks; dress; kimono; shorts; bikini; folding hand fan=fan; purse; handbag; backpack; thong sandal=sandal;
woman’s sandal=sandal; man’s shoe=shoe; running shoe=shoe; hiking boot=boot; woman’s boot=boot; high-heeled shoe;
ballet shoes; crown; woman’s hat=hat; top hat; graduation cap; billed cap=cap; military helmet=helmet;
rescue worker’s helmet=helmet; lipstick; ring; gem stone=gem; loudspeaker; megaphone; bell; microphone;
studio microphone=microphone; headphone=headphones; radio; saxophone; trumpet; accordion; guitar;
musical keyboard=piano; violin; banjo; drum; long drum=drum; maracas; flute; mobile phone; telephone; battery;
electric plug=plug; laptop; desktop computer=computer; printer; keyboard; computer mouse; floppy disk;
optical disk=disc; abacus; movie camera; television; camera; camera with flash=camera; video camera;
magnifying glass tilted left=magnifying glass; magnifying glass tilted right=magnifying glass; candle; light bulb;
flashlight; red paper lantern=lantern; notebook; notebook with decorative cover=notebook; closed book=book;
open book=book; green book=book; blue book=book; orange book=book; scroll; newspaper; coin; money bag;
dollar banknote=banknote; euro banknote=banknote; yen banknote=banknote; pound banknote=banknote; credit card;
envelope; package=box; closed mailbox with raised flag=mailbox; closed mailbox with lowered flag=mailbox;
postbox=mailbox; pencil; pen; fountain pen; paintbrush; crayon; briefcase; file folder=folder; calendar; clipboard;
pushpin; round pushpin=pushpin; paperclip; straight ruler=ruler; triangular ruler=ruler; scissors; wastebasket;
locked=padlock; unlocked=padlock; key; old key=key; hammer; axe; pick=pickaxe; dagger; bomb; boomerang;
bow and arrow=bow; shield; carpentry saw=saw; wrench; screwdriver; nut and bolt=bolt; gear; balance scale; hook;
toolbox; magnet; ladder; test tube; petri dish; microscope; telescope; satellite antenna=satellite dish; syringe;
pill; adhesive bandage=bandage; crutch; stethoscope; door; mirror; window; bed; couch and lamp=couch; chair; toilet;
plunger; shower; bathtub; mouse trap; razor; lotion bottle; safety pin; broom; basket;
roll of paper=roll of toilet paper; bucket; soap; toothbrush; sponge; fire extinguisher; shopping cart; cigarette;
headstone=gravestone; moai=statue; seat; parachute; teddy bear
"""
_LETTERED = """
stop sign; police car; ambulance; taxi; bus; calendar; newspaper; banknote; credit card; ticket; alarm clock; clock;
watch; keyboard; ruler; billiard ball; slot machine; pill; computer; floppy disk; medal; stopwatch
"""

Names = dict[str, str]


def _entries(text: str) -> Names:
    pairs = (entry.strip().replace("\n", " ").partition("=") for entry in text.split(";"))
    return {label: noun or label for label, _, noun in pairs if label}


NOUNS: Names = {}
for _group in (_ANIMALS, _FOOD, _TRAVEL, _ACTIVITIES, _OBJECTS):
    NOUNS |= _entries(_group)

LETTERED = frozenset(_entries(_LETTERED))
"""Nouns whose drawings have letters or figures, which a mirror would show."""
